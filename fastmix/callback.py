"The mixing callbacks: what `fastmix.handler` and `fastmix.methods` have, under one name."
from .handler import *
from .methods import *
from .draw import _number       # `show` takes these two from here; they live in draw and schedule
from .schedule import _factors
