"""Draws the picture that shared links to the documentation show, `nbs/card.png`, and the icon of its pages, `nbs/favicon.svg`.

`python bench/card.py` from anywhere. The digits come with scikit-learn, and fastmix mixes them."""
from pathlib import Path

import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits

from fastmix.functional import cutmix_batch, mixup_batch

NIGHT,PAPER,BLUE,ORANGE = '#16213a','#f7f5f0','#4c8dff','#ff9f45'
NBS = Path(__file__).resolve().parent.parent/'nbs'

ICON = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="7" fill="{NIGHT}"/>
<rect x="5" y="5" width="15" height="15" rx="2" fill="{BLUE}"/>
<rect x="12" y="12" width="15" height="15" rx="2" fill="{ORANGE}"/>
<rect x="12" y="12" width="8" height="8" fill="{PAPER}"/>
</svg>
"""

def digits():
    "The three and the eight that are most like the others of their kind"
    x,y = load_digits(return_X_y=True)
    pair = [min(x[y==c], key=lambda o: np.abs(o-x[y==c].mean(0)).sum()) for c in (3,8)]
    return torch.tensor(np.stack(pair)/16).float().view(2,1,8,8),torch.tensor([3,8])

def show(fig, x, left, bottom, side, title, box=None):
    "A digit as a tile, `left`, `bottom` and `side` in inches of a 12 by 6.3 figure"
    ax = fig.add_axes([left/12, bottom/6.3, side/12, side/6.3])
    ax.imshow(x[0], cmap=LinearSegmentedColormap.from_list('paper', [PAPER, NIGHT]), vmin=0, vmax=1)
    ax.set_axis_off()
    if box: ax.add_patch(Rectangle((box[0]-.5,box[1]-.5), box[2]-box[0], box[3]-box[1], fill=False, edgecolor=ORANGE, lw=5))
    ax.set_title(title, color=PAPER, fontsize=14, pad=9)

def card():
    x,y = digits()
    box = 3,3,8,8
    mixed,_,_ = mixup_batch(x, y, mixing=.3, indices=[1,0])
    cut,_,area,_ = cutmix_batch(x, y, bbox=box, indices=[1,0])
    fig = plt.figure(figsize=(12,6.3), facecolor=NIGHT)
    for x0,y0,side,c in ((.72,5.15,.6,BLUE), (1.,4.87,.6,ORANGE), (1.,5.15,.32,PAPER)):    # the icon
        fig.add_artist(Rectangle((x0/12,y0/6.3), side/12, side/6.3, color=c, lw=0, transform=fig.transFigure))
    fig.text(.055, .6, 'fastmix', color=PAPER, fontsize=74, weight='bold', va='center')
    fig.text(.06, .42, 'MixUp, CutMix and their kin for fastai', color=PAPER, fontsize=20, va='center')
    fig.text(.06, .34, 'and plain PyTorch, and the long run', color=PAPER, fontsize=20, va='center')
    fig.text(.06, .26, 'that makes them pay', color=PAPER, fontsize=20, va='center')
    for i,(o,t) in enumerate(((x[0],'three'), (x[1],'eight'))): show(fig, o, 6.7+2.6*i, 3.45, 2.2, t)
    show(fig, mixed[0], 6.7, .4, 2.2, '0.7 three + 0.3 eight')
    show(fig, cut[0], 9.3, .4, 2.2, f'{area:.1g} three + {1-area:.1g} eight', box)
    return fig

if __name__=='__main__':
    card().savefig(NBS/'card.png', dpi=100)
    (NBS/'favicon.svg').write_text(ICON, encoding='utf-8')
