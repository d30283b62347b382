"""Image and text towers. A tower is chosen by `model.image.name` / `model.text.name` from a dict beside its protocol."""
