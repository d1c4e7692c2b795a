"""What a page and a program share, without Gradio: model pool, journal, sessions, floors."""
