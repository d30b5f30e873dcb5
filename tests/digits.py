"Small real data for the tests: the handwritten digits that come with scikit-learn, as a fastai `DataLoaders`"
from functools import lru_cache
import numpy as np
from fastai.vision.all import *
from sklearn.datasets import load_digits

@lru_cache
def digits():
    x,y = load_digits(return_X_y=True)
    return x.reshape(-1,8,8).astype(np.float32)/16, y

def get_x(i): return TensorImageBW(digits()[0][i][None])
def get_y(i): return digits()[1][i]

def digit_dls(n=160, bs=32, path='.', **kw):
    "`n` digits, a quarter of them for validation"
    block = DataBlock((TransformBlock, CategoryBlock), get_x=get_x, get_y=get_y, splitter=IndexSplitter(list(range(0,n,4))))
    return block.dataloaders(list(range(n)), bs=bs, path=path, **{"num_workers":0, **kw})

def net(c=10, p=0.): return nn.Sequential(nn.Conv2d(1,8,3,2,1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(p), nn.Linear(32,c))

__all__ = [n for n in globals() if not n.startswith(('test','_'))]  # fastai's star brings fastcore's test functions, which pytest would collect
