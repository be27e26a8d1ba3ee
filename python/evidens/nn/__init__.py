"""Drop-in ``torch.nn`` modules over the ops; the first ones come with the coupling layers."""
