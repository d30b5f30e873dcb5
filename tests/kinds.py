"""Every method on every kind of data: what works, and why the rest does not.

`python tests/kinds.py` tries them all and writes the table into `nbs/kinds.ipynb`; `tests/test_data_kinds.py` tries them again and compares."""
import copy, json, warnings
from functools import partial
import torch, torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import nn
import fastmix.all as fm
from house import load, nbs, text

N,C = 8,4                        # samples a batch, classes
METHODS = dict(MixUp=fm.MixUp, CutMix=fm.CutMix, CutMixUp=partial(fm.CutMixUp, switch_prob=.5), ResizeMix=fm.ResizeMix, FMix=fm.FMix, RecursiveMix=fm.RecursiveMix, RICAP=fm.RICAP, ZetaMix=fm.ZetaMix)
if hasattr(fm, 'ManifoldMixUp'): METHODS['ManifoldMixUp'] = fm.ManifoldMixUp
METHODS["MixUp, close partners"] = partial(fm.MixUp, partner='close')

# --- small models, with a stage or two to mix at

class Several(nn.Module):
    "`parts`, one for each input, whose vectors are joined; one head for each of `widths`"
    def __init__(self, parts, n_in, *widths):
        super().__init__()
        self.parts,self.heads = nn.ModuleList(parts),nn.ModuleList(nn.Linear(n_in,w) for w in widths)
    def forward(self, *xb):
        h = torch.cat([p(x) for p,x in zip(self.parts, xb)], 1)
        out = tuple(m(h) for m in self.heads)
        return out if len(out)>1 else out[0]

def body(d=2, c=3):
    "Pictures, sequences or volumes to 8 numbers"
    conv,pool = {1:(nn.Conv1d,nn.AdaptiveAvgPool1d), 2:(nn.Conv2d,nn.AdaptiveAvgPool2d), 3:(nn.Conv3d,nn.AdaptiveAvgPool3d)}[d]
    return nn.Sequential(conv(c,8,3,2,1), nn.ReLU(), conv(8,8,3,2,1), nn.ReLU(), conv(8,8,3,2,1), nn.ReLU(), pool(1), nn.Flatten())

def vector(n=6): return nn.Sequential(nn.Linear(n,16), nn.ReLU(), nn.Linear(16,16), nn.ReLU(), nn.Linear(16,8))
def per_pixel(out): return nn.Sequential(nn.Conv2d(3,8,3,1,1), nn.ReLU(), nn.Conv2d(8,8,3,1,1), nn.ReLU(), nn.Conv2d(8,out,1))

class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.embeds,self.rest = nn.ModuleList([nn.Embedding(5,3), nn.Embedding(5,3)]),nn.Sequential(vector(12), nn.Linear(8,C))
    def forward(self, cat, cont): return self.rest(torch.cat([e(cat[:,i]) for i,e in enumerate(self.embeds)]+[cont], 1))

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb,self.rest = nn.Embedding(20,6),nn.Sequential(vector(), nn.Linear(8,C))
    def forward(self, x): return self.rest(self.emb(x).mean(1))

def label_and_number(pred, y, z): return F.cross_entropy(pred[0], y) + F.mse_loss(pred[1], z)

# --- the kinds: inputs, targets, model, loss

def picture(*size): return torch.rand(N, 3, *(size or (16,16)))
def label(): return torch.randint(0, C, (N,))
def one(part, out=C, n=8): return nn.Sequential(part, nn.Linear(n,out))

KINDS = {
    'pictures, a label': lambda: ((picture(),), (label(),), one(body()), nn.CrossEntropyLoss()),
    'pictures, several labels': lambda: ((picture(),), (torch.randint(0,2,(N,C)).float(),), one(body()), nn.BCEWithLogitsLoss()),
    'pictures, soft labels': lambda: ((picture(),), (torch.rand(N,C).softmax(1),), one(body()), nn.CrossEntropyLoss()),
    'pictures, a number': lambda: ((picture(),), (torch.rand(N,1),), one(body(), 1), nn.MSELoss()),
    'pictures, a mask': lambda: ((picture(),), (torch.randint(0,C,(N,16,16)),), per_pixel(C), nn.CrossEntropyLoss()),
    'pictures, a number for each pixel': lambda: ((picture(),), (torch.rand(N,1,16,16),), per_pixel(1), nn.L1Loss()),
    'sequences, a label': lambda: ((picture(32),), (label(),), one(body(1)), nn.CrossEntropyLoss()),
    'volumes, a label': lambda: ((picture(8,12,10),), (label(),), one(body(3)), nn.CrossEntropyLoss()),
    'two pictures of different size, a label': lambda: ((picture(),picture(8,8)), (label(),), Several([body(),body()], 16, C), nn.CrossEntropyLoss()),
    'a picture and a row of numbers, a label': lambda: ((picture(),torch.rand(N,6)), (label(),), Several([body(),vector()], 16, C), nn.CrossEntropyLoss()),
    'pictures, a label and a number': lambda: ((picture(),), (label(),torch.rand(N,1)), Several([body()], 8, C, 1), label_and_number),
    'rows of numbers, a label': lambda: ((torch.rand(N,6),), (label(),), one(vector()), nn.CrossEntropyLoss()),
    'rows of numbers, a number': lambda: ((torch.rand(N,6),), (torch.rand(N,1),), one(vector(), 1), nn.MSELoss()),
    'tables with categories, a label': lambda: ((torch.randint(0,5,(N,2)),torch.rand(N,6)), (label(),), Table(), nn.CrossEntropyLoss()),
    'text, a label': lambda: ((torch.randint(1,20,(N,12)),), (label(),), Words(), nn.CrossEntropyLoss()),
}

# --- trying

class Watch(Callback):
    "What became of each batch"
    order,run_valid = 1,False
    def __init__(self): self.seen = []
    def after_loss(self):
        cb = next(o for o in self.learn.cbs if isinstance(o, fm.MixHandler))
        self.seen.append((tuple(o.detach().clone() for o in self.learn.xb), self.learn.yb, self.learn.pred, self.learn.loss.detach(), copy.copy(cb.plan)))

def attempt(method, kind, n_batches=4):
    "Train for an epoch: its batches, what the model and the loss saw of each, or else the error's message"
    torch.manual_seed(0)
    batches = []
    for _ in range(n_batches):
        xb,yb,model,loss = KINDS[kind]()
        batches.append((*xb,*yb))
    cb,w = METHODS[method](),Watch()
    learn = Learner(DataLoaders(Batches(batches, len(xb)), Batches(batches[:1], len(xb))), model, loss_func=loss, cbs=[cb,w], lr=.1)
    learn.remove_cbs([o for o in learn.cbs if type(o).__name__ in ('ProgressCallback','Recorder')])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: learn.fit(1)
        except (ValueError,TypeError) as e: return None,None,str(e).splitlines()[-1].strip().replace(type(cb).__name__+' cuts', 'It cuts')
    assert learn.loss_func is loss
    return batches,w.seen,None

class Batches(list):
    "A list of batches that knows how many of their tensors are inputs"
    def __init__(self, o, n_inp): super().__init__(o); self.n_inp = n_inp

def table():
    "The table in Markdown, methods with the same answers in one column, and the reasons below it"
    reasons,columns = [],{}
    def cell(m, k):
        error = attempt(m, k)[2]
        if error is None: return '✓'
        if error not in reasons: reasons.append(error)
        return f'({reasons.index(error)+1})'
    answers = [[cell(m, k) for m in METHODS] for k in KINDS]
    for m,column in zip(METHODS, zip(*answers)): columns.setdefault(column, []).append(m)
    rows = [f"| | {' | '.join(', '.join(ms) for ms in columns.values())} |", '|---|'+':-:|'*len(columns)]
    rows += [f"| {k} | {' | '.join(row)} |" for k,row in zip(KINDS, zip(*columns))]
    return '\n'.join(rows+['', *(f'({i+1}) {o}' + ('' if i==len(reasons)-1 else '\n') for i,o in enumerate(reasons))])

BEGIN,END = '<!-- table: python tests/kinds.py -->','<!-- end of table -->'

def saved():
    "The table as it stands in the notebook"
    src = next(text(c['source']) for c in load(nbs/'kinds.ipynb')['cells'] if BEGIN in text(c['source']))
    return src.split(BEGIN)[1].split(END)[0].strip()

def write():
    path = nbs/'kinds.ipynb'
    nb = load(path)
    for c in nb['cells']:
        src = text(c['source'])
        if BEGIN in src:
            src = src.split(BEGIN)[0]+f'{BEGIN}\n\n{table()}\n\n{END}'+src.split(END)[1]
            c['source'] = src.splitlines(True)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False)+'\n', encoding='utf-8')

if __name__=='__main__': write()
