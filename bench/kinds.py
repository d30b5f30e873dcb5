"""Tables, regression and text with and without `ManifoldMixUp`: held-out results over a few seeds, printed as a table.

`python bench/kinds.py` takes one to two minutes on a CPU. `--kinds wine text` runs some of the data sets, `--seeds 10` more seeds,
`--layers input` mixes elsewhere. The data come with scikit-learn, and the text with Python itself: docstrings of its standard library,
to be told apart by what their modules are about."""
import argparse,importlib,inspect,re,warnings

import numpy as np
import pandas as pd
import torch
from fastai.tabular.all import *
from fastai.text.all import *
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

from fastmix.manifold import ManifoldMixUp

SUBJECTS = dict(
    files='os os.path shutil pathlib tempfile zipfile tarfile gzip bz2 lzma glob fnmatch fileinput filecmp io stat',
    network='socket ssl http.client http.server http.cookies http.cookiejar urllib.request urllib.parse urllib.robotparser ftplib smtplib imaplib '
            'poplib socketserver xmlrpc.client xmlrpc.server ipaddress select selectors',
    parallel='asyncio threading multiprocessing multiprocessing.pool multiprocessing.managers concurrent.futures queue sched subprocess contextvars',
    markup='xml.dom.minidom xml.etree.ElementTree xml.sax.handler xml.sax.xmlreader html.parser html json csv email.message '
           'email.header email.policy email.utils email.generator email.headerregistry email.charset mailbox configparser plistlib',
    numbers='math cmath decimal fractions statistics random numbers datetime calendar colorsys operator bisect heapq',
    code='ast inspect dis tokenize importlib importlib.abc importlib.machinery importlib.util types typing unittest unittest.mock doctest pdb bdb '
         'trace traceback cProfile pstats codeop symtable pkgutil pydoc')

# --- data

def table_dls(load, seed, number=False, bs=32):
    "Loaders of one of scikit-learn's tables, its first column cut into five categories; half of the rows, drawn with `seed`, are held out"
    d = load()
    df = pd.DataFrame(d.data, columns=[re.sub(r'\W', '_', str(o)) for o in d.feature_names])
    cat,*cont = df.columns
    df[cat] = pd.qcut(df[cat], 5, labels=False, duplicates='drop').astype(str)
    df['target'] = ((d.target-d.target.mean())/d.target.std()).astype(np.float32) if number else d.target
    idx = np.random.default_rng(seed).permutation(len(df)).tolist()
    splits = sorted(idx[:len(df)//2]),sorted(idx[len(df)//2:])
    to = TabularPandas(df, [Categorify, Normalize], [cat], cont, 'target', RegressionBlock() if number else CategoryBlock(), splits=splits)
    return to.dataloaders(bs=bs, val_bs=512, num_workers=0)

def docstrings():
    "Docstrings of four words or more from the standard library, and the subjects of the modules that they come from"
    res = {}
    for subject,names in SUBJECTS.items():
        for m in map(importlib.import_module, names.split()):
            objs = [m, *(v for k,v in vars(m).items() if k[0]!='_' and callable(v))]
            objs += [v for o in objs[1:] if inspect.isclass(o) for k,v in vars(o).items() if k[0]!='_' and (callable(v) or isinstance(v, property))]
            docs = [' '.join(d.split()) for o in objs if isinstance(d := getattr(o, '__doc__', None), str)]
            for d in docs:
                if d.count(' ')>2: res.setdefault(d, subject)
    return list(res), list(res.values())

def words(text): return ['xxbos', *re.findall(r'\w+|[^\w\s]', text.lower())[:47]]

def text_dls(seed, data=None, n=1000, bs=64):
    "Loaders of `n` texts to train with and as many, 1,000 at least, held out, drawn with `seed`"
    texts,labels = data or docstrings()
    idx = np.random.default_rng(seed).permutation(len(texts))[:n+max(n,1000)]
    items = [(words(texts[i]), labels[i]) for i in idx]
    vocab = make_vocab(Counter(w for t,_ in items[:n] for w in t), min_freq=2)
    tfms = [[ItemGetter(0), Numericalize(vocab)], [ItemGetter(1), Categorize(sorted(set(labels)))]]
    dsets = Datasets(items, tfms, splits=(range(n), range(n,len(items))))
    return dsets.dataloaders(bs=bs, val_bs=512, dl_type=SortedDL, before_batch=pad_input_chunk, num_workers=0)

# --- training

def table_learner(load, seed, cbs, number=False):
    dls = table_dls(load, seed, number)
    return tabular_learner(dls, [64,32], y_range=None, metrics=rmse if number else accuracy, cbs=cbs)

def text_learner(seed, cbs, data=None, n=1000):
    dls = text_dls(seed, data, n)
    config = dict(awd_lstm_clas_config, emb_sz=48, n_hid=64, n_layers=1)
    model = get_text_classifier(AWD_LSTM, len(dls.vocab[0]), dls.c, config=config, drop_mult=.5)
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[*rnn_cbs(alpha=0., beta=0.), *cbs])

KINDS = dict( # a learner for a seed and callbacks, epochs, learning rate
    wine=(partial(table_learner, load_wine), 30, 1e-2),
    cancer=(partial(table_learner, load_breast_cancer), 30, 1e-2),
    diabetes=(partial(table_learner, load_diabetes, number=True), 30, 1e-2),
    text=(text_learner, 10, 1e-2))

def run(kind, seed, mix, **kwargs):
    "Train once; `(metric, loss)` on what was held out"
    make,epochs,lr = KINDS[kind]
    set_seed(seed)
    learn = make(seed, L(mix), **kwargs)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(epochs, lr)
    _,loss,metric = learn.final_record
    return metric,loss

def compare(kind, seeds, mixes):
    "Rows (kind, mix, metric, loss, seeds with a lower loss than without)"
    res = {k:np.array([run(kind, s, f() if f else []) for s in range(seeds)]) for k,f in mixes.items()}
    base = next(iter(res.values()))
    for k,v in res.items():
        (m,l),(me,le) = v.mean(0),v.std(0, ddof=1)/np.sqrt(seeds)
        yield kind,k,f'{m:.3f} ±{me:.3f}',f'{l:.3f} ±{le:.3f}',f'{(v[:,1]<base[:,1]).sum()} of {seeds}' if v is not base else ''

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--kinds', nargs='*', default=list(KINDS), choices=KINDS, help='which data sets')
    p.add_argument('--seeds', type=int, default=3, help='runs of each, every one with its own split and start')
    p.add_argument('--alpha', type=float, default=2., help="ManifoldMixUp's alpha")
    p.add_argument('--layers', nargs='*', help="ManifoldMixUp's layers")
    a = p.parse_args()
    torch.set_num_threads(1)
    mixes = {'none':None, 'ManifoldMixUp':lambda: ManifoldMixUp(a.alpha, layers=a.layers)}
    print('| data | mix | accuracy (diabetes: RMSE) | loss | lower loss |\n|---|---|---|---|---|')
    for kind in a.kinds:
        for row in compare(kind, a.seeds, mixes): print('|', ' | '.join(row), '|', flush=True)

if __name__=='__main__':
    warnings.filterwarnings('ignore')
    main()
