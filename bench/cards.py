"""What the method cards show: a picture of photos that are mixed, and tables that are read from the files in `bench/results`.

`python bench/cards.py` prints the tables of every method. `python bench/cards.py --points` writes the points of the picture of photos into
tutorial 03, which carries them so that it can be drawn where the result files are not."""
import json
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent/'results'

# names of the recipes in the result files in which a method alone is what mixes
RECIPES = {
    'MixUp': ['MixUp only'],
    'CutMix': ['CutMix only'],
    'CutMixUp': ['fit_long'],
    'ResizeMix': ['ResizeMix only'],
    'FMix': ['FMix only'],
    'RecursiveMix': ['RecursiveMix only', 'RecursiveMix'],
    'ManifoldMixUp': ['ManifoldMixUp only'],
    'RICAP': ['RICAP only'],
    'ZetaMix': ['ZetaMix only']}
DATA = dict(cifar10='CIFAR-10, {} photos, 32 px', fashion='Fashion-MNIST, {} pictures, 28 px', openclipart='clip art, {} drawings, 64 px',
            imagenette160='Imagenette, {} photos, 128 px')
SIZES = dict(imagenette160=9469, openclipart=1635)

def runs(folder=RESULTS):
    "A row for each finished run of all result files; `size`, of training, is filled in where the whole set was used"
    files = [pd.read_json(f, lines=True) for f in sorted(Path(folder).glob('*.jsonl'))]
    t = pd.concat([o for o in files if {'recipe','seed'} <= set(o)])
    t['n'] = t.train.fillna(t.data.map(SIZES))
    return t

def _minus(a, b, column, scale):
    "Difference of two groups of runs in `column` as text; its standard error if both have two seeds or more"
    d = scale*(a[column].mean()-b[column].mean())
    digits = 1 if scale==100 else 3
    if min(len(a), len(b))<2: return f'{d:+.{digits}f}'
    return f'{d:+.{digits}f} ± {scale*np.hypot(a[column].sem(), b[column].sem()):.{digits}f}'

def effect_rows(method, epochs=80, t=None):
    "What `method` changes against training without mixing, on every data set where both were run: a list of dicts"
    t = runs() if t is None else t
    res = []
    for (data,part,n),d in t[t.epochs==epochs].groupby(['data','part','n'], sort=False):
        mine,none = d[d.recipe.isin(RECIPES[method])],d[d.recipe=='none']
        if len(mine) and len(none):
            res.append({'data':DATA.get(data, data).format(f'{int(n):,}'), 'measured on':part, 'accuracy, points':_minus(mine, none, 'accuracy', 100),
                        'NLL':_minus(mine, none, 'nll', 1), 'seeds':f'{len(mine)}, {len(none)}', 'call':f'`{mine.call.iloc[0]}`'})
    tested = {(o['data']) for o in res if o['measured on']=='test'}
    return [o for o in res if o['measured on']=='test' or o['data'] not in tested]

def _markdown(rows, none, widths=None):
    "A table, or the words `none`; `widths`: of the columns, where lines are so long that pandoc shares the page out by the dashes"
    if not rows: return none
    df = pd.DataFrame(rows)
    lines = ['| '+' | '.join(df.columns)+' |', '|'+''.join('-'*w+'|' for w in widths or [3]*len(df.columns))]
    return '\n'.join(lines+['| '+' | '.join(map(str, r))+' |' for r in df.itertuples(index=False)])

def effect(method):
    "The table of a card: the difference from no mixing after 80 epochs"
    from IPython.display import Markdown
    return Markdown(_markdown(effect_rows(method), f'No run of `{method}` alone stands in the result files yet.', (24,10,12,16,7,31)))

def cost_rows(method):
    "Times of mixing a batch: multiples of `x.clone()` on a CPU, µs on a GPU; a row for each mode and device, a column for each batch"
    rows = {}
    for file in ('speed.json','speed_h200.json'):
        path = RESULTS/file
        d = json.loads(path.read_text()) if path.exists() else dict(device='', rows=[])
        for r in d['rows']:
            name,_,mode = r.get('kind', '').partition(' ')
            if r['part']!='pictures' or r['who']!='fastmix' or name!=method or mode not in ('batch','pair','elem') or 'channels_last' in r['shape']: continue
            on = 'CPU, × clone' if d['device']=='cpu' else f"{d['device']}, µs"
            rows.setdefault((mode,on), {})[r['shape']] = f"{r['clones']:.1f}" if d['device']=='cpu' else f"{r['us']:.0f}"
    return [{'mode':mode, 'on':on, **o} for (mode,on),o in rows.items()]

def cost(method):
    "The table of a card: the time to mix a batch and its labels"
    from IPython.display import Markdown
    return Markdown(_markdown(cost_rows(method), 'Its time alone stands in no result file yet.'))

def three_speeds(shape='(64,3,224,224) float32'):
    "The front page's rows: times × `x.clone()` on a CPU, a row for each kind of mix, a column for each library"
    from IPython.display import Markdown
    rows = [o for o in json.loads((RESULTS/'speed.json').read_text())['rows'] if o['part']=='pictures' and o['shape']==shape]
    found = {(o['kind'],o['who']):o['clones'] for o in rows}
    def cell(kind, *whos): return next((f'{found[k]:.1f}' for k in ((kind,w) for w in whos) if k in found), '–')
    kinds = 'MixUp batch','CutMix batch','CutMix elem'
    return Markdown(_markdown([{'mix':f"{k.split()[0]}, a draw for each {dict(batch='batch', elem='sample')[k.split()[1]]}", 'fastmix':cell(k, 'fastmix'),
        'torchvision':cell(k, 'torchvision'), 'timm, which overwrites the batch':cell(k+', in place', 'timm')} for k in kinds], ''))

def photos(size=112):
    "Six pieces of scikit-learn's two sample photos (CC BY 2.0), (6,3,size,size) uint8, and their names"
    import torch
    import torch.nn.functional as F
    from sklearn.datasets import load_sample_images
    china,flower = (torch.tensor(o).permute(2,0,1).float() for o in load_sample_images().images)
    boxes = [(china,20,50,320,'tower'), (flower,72,164,290,'dahlia'), (china,125,395,245,'trees'), (flower,300,290,127,'bud'),
             (china,0,330,240,'sky'), (flower,0,0,190,'leaves')]
    x = [F.interpolate(p[None,:,t:t+s,l:l+s], (size,size), mode='bicubic', antialias=True)[0] for p,t,l,s,_ in boxes]
    return torch.stack(x).clamp(0,255).round().byte(),[o[-1] for o in boxes]

def photo_learner(*cbs, size=112):
    "A learner whose batches are `photos`, with a model that is never trained"
    import torch
    from fastai.vision.all import Categorize,Datasets,IntToFloatTensor,ItemGetter,Learner,TensorImage
    x,names = photos(size)
    items = [(TensorImage(a), b) for a,b in zip(x, names)]
    dsets = Datasets(items*2, [[ItemGetter(0)], [ItemGetter(1), Categorize()]], splits=[range(6), range(6,12)])
    dls = dsets.dataloaders(bs=6, shuffle=False, after_batch=IntToFloatTensor, num_workers=0)
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48,6))
    return Learner(dls, model, cbs=list(cbs))

def points():
    "Accuracy on CIFAR-10's test images by length: a recipe's name → [epochs, mean, standard error, seeds]"
    names = {'none':'no mixing', 'fastai_mixup':"fastai's MixUp", 'fastai_cutmix':"fastai's CutMix", 'fit_long':'fit_long'}
    t = pd.read_json(RESULTS/'cifar10.jsonl', lines=True).query("part=='test' and train==2000")
    g = t[t.recipe.isin(list(names))].groupby(['recipe','epochs']).accuracy.agg(['mean','sem','size'])
    return {v:[[int(n), round(float(100*o['mean']), 2), round(float(100*np.nan_to_num(o['sem'])), 2), int(o['size'])] for n,o in g.loc[k].iterrows()]
            for k,v in names.items()}

def write_points(nb):
    "Put `points` into the cell of the notebook `nb` that begins with `points = json`"
    d = json.loads(nb.read_text(encoding='utf-8'))
    rows = {k:',\n  '.join(', '.join(map(json.dumps, v[i:i+2])) for i in range(0, len(v), 2)) for k,v in points().items()}
    new = '{'+',\n '.join(f'{json.dumps(k)}: [{v}]' for k,v in rows.items())+'}'
    cell = next(c for c in d['cells'] if 'points = json.loads' in ''.join(c['source']))
    head,_,tail = ''.join(cell['source']).split('"""')
    cell['source'] = f'{head}"""\n{new}"""{tail}'.splitlines(True)
    nb.write_text(json.dumps(d, indent=1, ensure_ascii=False)+'\n', encoding='utf-8')

if __name__=='__main__':
    import sys
    if '--points' in sys.argv:
        write_points(next((Path(__file__).parent.parent/'nbs/tutorials').glob('*why_80*.ipynb')))
        sys.exit()
    for m in RECIPES: print(f'{m}\n{_markdown(effect_rows(m), "-")}\n{_markdown(cost_rows(m), "-")}\n')
