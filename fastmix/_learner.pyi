"""What an editor knows of a `Learner` once fastmix is imported: fastai's, with the methods that fastmix adds to it.

Editors and type checkers read this file, Python does not. A test holds it to the signatures of the methods themselves."""
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import pandas as pd
from fastai.callback.core import Callback
from fastai.data.load import DataLoader
from fastai.learner import Learner as _Learner
from matplotlib.axes import Axes

from .ema import EMA

class Learner(_Learner):
    def fit_long(self,
        n_epoch:int=..., lr_max:float|slice|Sequence|None=..., div:float=..., div_final:float=..., pct_start:float=..., wd:float|str|None=...,
        moms:tuple[float,float,float]|None=..., cbs:Callback|type|Sequence|None=..., reset_opt:bool=..., start_epoch:int=..., save:str|None=...,
        resume:bool|str=..., every_min:float|None=..., max_minutes:float|None=..., schedule:Callable|None=..., ema:bool|float|EMA|None=..., clip:float|None=...,
        columns:bool=..., advice:bool=...)->None:
        "`fit_one_cycle` for long runs with mixing; with `save`, `schedule`, `wd`, `ema` and `clip` at `None` it is `fit_one_cycle`"
    def show_mix(self,
        dl:DataLoader|None=..., b:tuple|None=..., max_n:int|None=..., boxes:bool=..., seed:int=..., figsize:tuple|None=...,
        ctxs:Sequence[Axes]|None=..., trunc_at:int=..., **kwargs)->np.ndarray|pd.DataFrame:
        "Show a training batch before mixing and as each mixing callback makes it"
    def many_devices(self, sync_bn:bool|None=..., **kwargs)->AbstractContextManager:
        "Train on all the processes that `accelerate launch` has started; does nothing in a single one"
