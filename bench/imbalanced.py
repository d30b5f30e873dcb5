"""What becomes of rare classes: the handwritten digits of scikit-learn with two digits thinned to one in twenty, trained without mixing and with
mixes that look at the classes.

`python bench/imbalanced.py` trains each mix with five seeds (other rare digits for each) and adds a line of JSON for each run to
`bench/results/digits_rare.jsonl`; runs that are there are not made again. `--table` only prints what is there."""
import argparse,json,time,warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.basics import Learner,nn
from fastai.callback.schedule import *
from fastai.callback.progress import ProgressCallback  # gives a learner `no_bar`
from fastai.layers import ConvLayer
from fastai.torch_core import set_seed
from sklearn.datasets import load_digits
from sklearn.metrics import recall_score
from sklearn.model_selection import train_test_split

from fastmix.all import *

OUT = Path(__file__).parent/'results'/'digits_rare.jsonl'
MIXES = {
    'no mixing':'None',
    'MixUp':'MixUp(1.)',
    'Remix':'MixUp(1., imbalance=(3,.5))',
    "partner='rare'":"MixUp(1., partner='rare')",
    "partner='rare' and Remix":"MixUp(1., partner='rare', imbalance=(3,.5))",
}

class Digits(torch.utils.data.Dataset):
    "Digits as tensors, which says what its labels are"
    def __init__(self, x, y): self.x,self.targets = x,y
    def __len__(self): return len(self.targets)
    def __getitem__(self, i): return self.x[i],self.targets[i]

def loaders(seed, ratio=20, bs=64):
    "Loaders with two rare digits, which are they is drawn; a third of all digits is held out, unthinned"
    x,y = load_digits(return_X_y=True)
    x,y = torch.tensor(x, dtype=torch.float).view(-1,1,8,8)/16,torch.tensor(y)
    rng = np.random.default_rng(seed)
    rare = rng.choice(10, 2, replace=False)
    train,test = train_test_split(np.arange(len(y)), test_size=1/3, stratify=y, random_state=seed)
    few = [rng.permutation(train[y[train]==c])[:round((y[train]==c).sum().item()/ratio)] for c in rare]
    train = np.concatenate([train[~np.isin(y[train], rare)], *few])
    dls = DataLoaders(DataLoader(Digits(x[train], y[train]), bs=bs, shuffle=True, drop_last=True), DataLoader(Digits(x[test], y[test]), bs=500))
    dls.c = 10
    return dls,rare

def net(): return nn.Sequential(ConvLayer(1,16), ConvLayer(16,32,stride=2), ConvLayer(32,64,stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64,10))

def one_run(mix, seed, epochs):
    "Train once; the recall of the rare and of the other digits"
    t = time.time()
    set_seed(seed) # before the loaders, which draw the seed of their order when they are made
    dls,rare = loaders(seed)
    learn = Learner(dls, net(), nn.CrossEntropyLoss(), cbs=eval(MIXES[mix]))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, 1e-2)
        p,y = learn.get_preds()
    recall = recall_score(y, p.argmax(1), average=None)
    others = np.setdiff1d(np.arange(10), rare)
    return dict(mix=mix, call=MIXES[mix], seed=seed, epochs=epochs, rare=rare.tolist(), rare_recall=round(float(recall[rare].mean()), 4),
                other_recall=round(float(recall[others].mean()), 4), recall=[round(float(o), 4) for o in recall], seconds=round(time.time()-t, 1))

def read(file=OUT): return [json.loads(o) for o in file.read_text().splitlines()] if file.exists() else []

def table(rows):
    "Mean recall in percent with its standard error over the seeds"
    df = pd.DataFrame(rows)
    df['all'] = [100*np.mean(o) for o in df.recall]
    df[['rare_recall','other_recall']] *= 100
    g = df.groupby('mix', sort=False)[['rare_recall','other_recall','all']]
    def say(m, s): return f'{m:.1f} ± {s:.1f}'
    res = pd.DataFrame({k:[say(*o) for o in zip(g.mean()[k], g.sem()[k])] for k in ('rare_recall','other_recall','all')}, index=g.mean().index)
    res.columns = ['recall of the two rare digits, %','of the other eight','mean of all ten']
    return res.join(g.size().rename('seeds')).loc[[o for o in MIXES if o in res.index]]

def plot_recall(rows):
    "The same as bars, with error bars"
    g = pd.DataFrame(rows).groupby('mix')[['rare_recall','other_recall']]
    names = [o for o in MIXES if o in g.groups]
    m,s = (100*o().loc[names].set_axis(['two rare digits','other eight'], axis=1) for o in (g.mean,g.sem))
    ax = m.plot.barh(xerr=s.fillna(0.), figsize=(7,2.8), capsize=2)
    ax.set(xlabel='recall, %', ylabel=None); ax.invert_yaxis()
    ax.legend(loc='lower center', bbox_to_anchor=(.5,1), ncol=2, frameon=False)     # above: inside it would cover a bar
    return ax

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--seeds', nargs='+', type=int, default=[0,1,2,3,4])
    p.add_argument('--epochs', type=int, default=30)
    p.add_argument('--out', type=Path, default=OUT)
    p.add_argument('--table', action='store_true', help='only print what is there')
    a = p.parse_args()
    warnings.filterwarnings('ignore')
    done = {(o['mix'],o['seed'],o['epochs']) for o in read(a.out)}
    for seed in [] if a.table else a.seeds:
        for mix in MIXES:
            if (mix,seed,a.epochs) in done: continue
            r = one_run(mix, seed, a.epochs)
            with open(a.out, 'a') as f: f.write(json.dumps(r)+'\n')
            print({k:r[k] for k in ('mix','seed','rare_recall','other_recall','seconds')}, flush=True)
    print(table(read(a.out)).to_string())

if __name__=='__main__': main()
