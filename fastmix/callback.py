"The mixing callbacks: what `fastmix.handler` and `fastmix.methods` have, under one name."
from .handler import *
from .methods import *
