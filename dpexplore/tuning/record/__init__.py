"""What is kept of a run: steps, results, capsules, replays."""
