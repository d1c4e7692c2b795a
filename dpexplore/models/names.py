"""Names of models that the command line's help shows without loading torch."""

DEFAULT_MODEL = "smollm2-135m-instruct"
