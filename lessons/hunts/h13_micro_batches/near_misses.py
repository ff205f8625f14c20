"""Near misses h13: repairs that are not."""


def step_loss__by_texts(losses, kept, size):
    """You weight each part by its number of texts. It is the number of tokens that counts."""
    total = 0.0
    for first in range(0, len(losses), size):
        part, counted = losses[first : first + size], kept[first : first + size]
        total += part[counted].mean() * len(part)
    return total / len(losses)


def step_loss__by_places(losses, kept, size):
    """You add up the losses, but divide by all places, padding included."""
    return (losses * kept).sum() / kept.size
