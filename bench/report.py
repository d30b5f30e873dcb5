"""What the result files say: means with standard errors, the lead of a recipe over others, and tables and plots of them for the pages.

A line of a result file is a finished run, written by `bench/accuracy.py`. Every figure of a page comes from here, none is typed."""
import json,math
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown

results = Path(__file__).parent/'results'

KEY = 'data part train epochs bs lr wd arch size flip opt smoothing device bf16 classes body call seed'.split()
BEFORE = dict(opt='adam', smoothing=0., device=None, bf16=False, classes=None, body=None, card='CPU')    # of lines that do not say it

NAMES = dict(fit_long='fit_long', timm="timm's recipe", torchvision="torchvision's mix", fastai_cutmix="fastai's CutMix", fastai_mixup="fastai's MixUp",
             none='no mixing', **{'fastai_mixup_wd.3':"fastai's MixUp, wd .3", 'none_wd.3':'no mixing, wd .3',
             'fastai_mixup_flat':"fastai's MixUp, flat", 'fastai_cutmix_flat':"fastai's CutMix, flat", 'timm_lr.003':"timm's recipe, lr 3e-3", 'timm_lr.001':"timm's recipe, lr 1e-3",
             'MixUp only':'MixUp alone', 'CutMix only':'CutMix alone'})

SETS = {  # what was compared: file, then which of its lines
    'Imagenette, 9,469 photos of 128 px, xresnet18':('photos_h200.jsonl', dict(part='test', epochs=80, arch='xresnet18', size=128)),
    'CIFAR-10, 2,000 pictures of 32 px, small network':('cifar10.jsonl', dict(part='test', epochs=80)),
    'CIFAR-10, 5,000 pictures':('cifar10_5000.jsonl', dict(part='test', epochs=80)),
    'Fashion-MNIST, 2,000 pictures of 28 px, small network':('fashion.jsonl', dict(part='test', epochs=80)),
    'clip art, 1,635 pictures of 64 px, small network':('openclipart.jsonl', dict(part='test', epochs=80))}

# --- numbers

def read(files):
    "The lines of result files"
    lines = [json.loads(o) for f in files if Path(f).exists() for o in Path(f).read_text().splitlines() if o.strip()]
    return [{**BEFORE, **o} for o in lines]

def key(line): return tuple(line[k] for k in KEY)

def rows_of(name):
    "The lines of one of `SETS`"
    file,which = SETS[name]
    return [o for o in read([results/file]) if all(o[k]==v for k,v in which.items())]

def table(rows):
    "Mean and standard error over the seeds of each recipe, in percent but for the negative log-likelihood (NLL)"
    df = pd.DataFrame(rows)
    df[['accuracy','ece']] *= 100
    g = df.groupby([k for k in KEY if k!='seed']+['recipe'], sort=False, dropna=False)
    res = g[['accuracy','nll','ece']].mean().join(g[['accuracy','nll']].sem().add_suffix('_se')).join(g.size().rename('seeds'))
    return res.reset_index()

def lead(rows, over, of='fit_long', by='accuracy'):
    "How far a recipe is ahead: the mean difference of runs with the same seed, its standard error, and how many seeds both have"
    d = pd.DataFrame(rows).pivot_table(by, 'seed', 'recipe')
    d = (d[of]-d[over]).dropna()*(100 if by=='accuracy' else 1)
    return d.mean(),d.sem() if len(d)>1 else math.nan,len(d)

def better(t, names=('fastai_mixup','fastai_cutmix')):
    "The recipe of `names` with the highest accuracy in a table"
    t = t[t.recipe.isin(names)]
    return t.recipe[t.accuracy.idxmax()]

def chance_error(accuracy, n):
    "Standard error, in points, of an accuracy in percent that comes from the choice of `n` test images alone"
    return 100*math.sqrt(accuracy/100*(1-accuracy/100)/n)

# --- words and tables

def pm(mean, se=math.nan, digits=1, sign=''):
    "`mean ± standard error`, only the mean where there is one seed"
    return f'{mean:{sign}.{digits}f}' + ('' if math.isnan(se) else f' ± {se:.{digits}f}')

def say_lead(rows, over, of='fit_long', by='accuracy'):
    "A lead in words, such as `1.2 ± 0.2 points above fastai's CutMix (2 seeds)`; in NLL `0.100 ± 0.010 below` it"
    mean,se,n = lead(rows, over, of, by)
    size = pm(abs(mean), se, 1)+' points' if by=='accuracy' else pm(abs(mean), se, 3)
    return f"{size} {'above' if mean>0 else 'below'} {NAMES.get(over, over)} ({n} seed{'s' if n>1 else ''})"

def markdown(head, rows, widths=None):
    "A table in Markdown; `widths`: relative widths of the columns, which pandoc takes from the dashes where lines are long"
    dashes = ['-'*max(3, w) for w in widths or [3]*len(head)]
    return '\n'.join('| '+' | '.join(map(str, o))+' |' for o in [head, dashes, *rows])

def cells(o): return pm(o.accuracy, o.accuracy_se),pm(o.nll, o.nll_se, 3),f'{o.ece:.1f}',o.seeds

def by_name(t):
    "Results by the names of the recipes, the best first, and below them the calls that the names stand for"
    t = t.sort_values('accuracy', ascending=False)
    rows = [(NAMES.get(o.recipe, o.recipe), *cells(o)) for o in t.itertuples()]
    calls = [f'- {NAMES.get(o.recipe, o.recipe)}: `{o.call}`' for o in t.itertuples()]
    return Markdown(markdown(['recipe','accuracy, %','NLL','ECE, %','seeds'], rows, [26,14,16,8,6])+'\n\nThe calls:\n\n'+'\n'.join(calls))

def by_call(t):
    "Results by the call that trained, the best first: for what differs in an argument"
    rows = [(f'`{o.call}`', *cells(o)) for o in t.sort_values('accuracy', ascending=False).itertuples()]
    return Markdown(markdown(['call','accuracy, %','NLL','ECE, %','seeds'], rows, [60,12,14,7,6]))

def summary(recipes=('fit_long','timm','torchvision','fastai_cutmix','fastai_mixup','none')):
    "A row for each data set: the accuracy of each recipe, and the lead over the better of fastai's callbacks"
    tables = {k:table(rows_of(k)) for k in SETS}
    recipes = [r for r in recipes if any((t.recipe==r).any() for t in tables.values())]
    def cell(t, r):
        o = t[t.recipe==r]
        return '–' if o.empty else f'{pm(o.accuracy.item(), o.accuracy_se.item())} ({o.seeds.item()})'
    rows = [(k, *(cell(t, r) for r in recipes), pm(*lead(rows_of(k), better(t))[:2], sign='+')) for k,t in tables.items()]
    return Markdown(markdown(['accuracy, % (seeds)', *(NAMES[r] for r in recipes), "lead over the better of fastai's"], rows, [24]+[12]*(len(recipes)+1)))

def lengths(t, recipes):
    "A row for each recipe, a column for each length of the run"
    ns = sorted(t.epochs.unique())
    def cell(r, n):
        o = t[(t.recipe==r)&(t.epochs==n)]
        return '–' if o.empty else f'{pm(o.accuracy.item(), o.accuracy_se.item())} ({o.seeds.item()})'
    return Markdown(markdown(['accuracy, % (seeds)', *(f'{n} epochs' for n in ns)], [(NAMES.get(r, r), *(cell(r, n) for n in ns)) for r in recipes]))

# --- plots

def points(ax, x, y, se, seeds, color, label=None, line='-', **kwargs):
    "Points with their standard errors; those of a single seed are hollow"
    ax.errorbar(x, y, **kwargs, fmt=line, color=color, capsize=3)
    for one in (False, True):
        sel = [(a,b) for a,b,n in zip(x, y, seeds) if (n==1)==one]
        ax.plot(*zip(*sel) if sel else ((),()), 'o', color=color, markerfacecolor='white' if one else color, label=None if one else label)

def plot(t, ax=None):
    "Accuracy against epochs, with standard errors; points of one seed are hollow"
    ax = ax or plt.subplots(figsize=(7,4.5))[1]
    for i,(name,d) in enumerate(t.sort_values('epochs').groupby('recipe', sort=False)):
        points(ax, d.epochs, d.accuracy, d.accuracy_se, d.seeds, f'C{i}', NAMES.get(name, name), yerr=d.accuracy_se.fillna(0))
    ticks = sorted(t.epochs.unique())
    ax.set_xscale('log')
    ax.set_xticks(ticks, map(str, ticks))
    ax.minorticks_off()
    ax.set(xlabel='epochs', ylabel='accuracy, %')
    if (t.seeds==1).any(): ax.plot([], [], 'o', color='grey', markerfacecolor='white', label='one seed')
    ax.legend()
    return ax

def ranking(t, ax=None):
    "Accuracy of each recipe, the best on top, with standard errors; points of one seed are hollow"
    t = t.sort_values('accuracy')
    ax = ax or plt.subplots(figsize=(7,.3*len(t)+.8))[1]
    points(ax, t.accuracy, range(len(t)), t.accuracy_se, t.seeds, 'C0', line='none', xerr=t.accuracy_se.fillna(0))
    ax.set_yticks(range(len(t)), [NAMES.get(o, o) for o in t.recipe])
    ax.set(xlabel='accuracy, %')
    ax.grid(axis='x', alpha=.4)
    return ax

# --- the map of the lead

AGAINST = {"the better of fastai's":('fastai_mixup','fastai_cutmix'), "timm's recipe":('timm',), 'no mixing':('none',)}

def leads(rows, by, of='fit_long'):
    "The lead of a recipe over others at each value of a column: `who` (a key of `AGAINST`), `x`, `lead`, `se`, `seeds`"
    res = []
    for x in sorted({o[by] for o in rows}):
        some = [o for o in rows if o[by]==x]
        for who,names in AGAINST.items():
            if not {o['recipe'] for o in some} & set(names): continue
            mean,se,n = lead(some, better(table(some), names), of)
            if n: res.append(dict(who=who, x=x, lead=mean, se=se, seeds=n))
    return pd.DataFrame(res)

def plot_leads(panels):
    "Leads as lines, a panel for each of a dictionary from the label of its axis to what `leads` gave; points of one seed are hollow"
    fig,axs = plt.subplots(1, len(panels), figsize=(4.4*len(panels),3.4), sharey=True, layout='constrained', squeeze=False)
    for ax,(label,d) in zip(axs[0], panels.items()):
        for i,who in enumerate(AGAINST):
            o = d[d.who==who]
            if len(o): points(ax, o.x, o.lead, o.se, o.seeds, f'C{i}', who, yerr=o.se.fillna(0))
        ticks = sorted(d.x.unique())
        ax.axhline(0, c='grey', lw=.8)
        ax.set_xscale('log')
        ax.set_xticks(ticks, [f'{o:,}' for o in ticks])
        ax.minorticks_off()
        ax.set(xlabel=label)
    axs[0][0].set(ylabel='lead of fit_long, points')
    axs[0][0].legend()
    return axs

# --- speed

def speed_table(file, kinds=('MixUp batch','MixUp elem','CutMix batch','CutMix elem','CutMixUp elem'), of='clones', digits=1):
    "From a file of `bench/speed.py --json`: a row for each kind of mix and library, `of` `'clones'` (times `x.clone()`) or `'us'`, contiguous memory"
    rows = [o for o in json.loads((results/file).read_text())['rows'] if o['part']=='pictures' and 'channels_last' not in o['shape']]
    shapes,values = list(dict.fromkeys(o['shape'] for o in rows)),{}
    for o in rows:
        kind = o['kind'].removesuffix(', in place')
        if kind in kinds: values[kind,o['who'],'place' in o['kind'],o['shape']] = o[of]
    res = []
    for kind in kinds:
        for who in sorted({k[1:3] for k in values if k[0]==kind}, key=lambda o: (o[1], o[0]!='fastmix', o[0])):
            row = (values.get((kind,*who,o)) for o in shapes)
            res.append((kind, who[0]+(', in place' if who[1] else ''), *('–' if o is None else f'{o:,.{digits}f}' for o in row)))
    if of=='us':
        clone = {o['shape']:o['us'] for o in rows if o['kind']=='clone'}
        res.append(('`x.clone()`', 'PyTorch', *(f'{clone[o]:,.{digits}f}' for o in shapes)))
    return Markdown(markdown(['mix','library',*shapes], res))
