"""The formulas of every op in plain torch: oracle of the tests, fallback of the ops, documentation.

Every function runs in any floating dtype on any device, is differentiable by autograd, and has
the signature of its op.  Nothing here knows the ops, the kernels or the models.
"""
