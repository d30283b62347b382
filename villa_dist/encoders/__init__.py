"""Image and text towers. A tower is chosen by `model.image.kind` / `model.text.kind` from a dict beside its protocol."""
