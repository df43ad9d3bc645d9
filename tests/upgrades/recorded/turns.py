"""turns.py: the later in the group, the better."""


def turn(completions, rows):
    return [row["sample"] / 4 for row in rows]
