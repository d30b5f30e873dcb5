"Mixing behind the input: what `fastmix.tracing` and `fastmix.manifold` have, under one name."
from .tracing import *
from .manifold import *
