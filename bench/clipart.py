"""Debian's collection of clip art as a folder to train on: `apt install openclipart-png`, then `python bench/clipart.py OUT`

Each theme with enough drawings is a class: up to 250 of them, chosen with a fixed seed, on white, the shorter side 80 pixels, four of five to train with.
Drawings that come out alike are taken once. `--source` names the folder of the collection if it is somewhere else."""
import argparse,random
from hashlib import sha256
from pathlib import Path

from PIL import Image,UnidentifiedImageError

SIDE,MOST,LEAST = 80,250,130
NO_THEME = {'unsorted', 'special'}

def on_white(path):
    "A drawing on white, its shorter side `SIDE` pixels, at most three times as long; `None` if it is unreadable or small"
    try: im = Image.open(path).convert('RGBA')
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError): return None
    if min(im.size)<48: return None
    white = Image.new('RGBA', im.size, 'white')
    white.alpha_composite(im)
    r = SIDE/min(im.size)
    im = white.convert('RGB').resize([max(SIDE, round(o*r)) for o in im.size], Image.LANCZOS)
    return im.crop((0, 0, *(min(o, 3*SIDE) for o in im.size)))

def drawings(theme, rng, seen):
    "Up to `MOST` different drawings of a theme"
    files,res = sorted(f for f in theme.rglob('*.png') if not f.is_symlink()),[]
    rng.shuffle(files)
    for f in files:
        if len(res)==MOST: break
        im = on_white(f)
        if im is None or (h := sha256(im.tobytes()).digest()) in seen: continue
        seen.add(h); res.append(im)
    return res

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', type=Path, help='folder to make, with train/CLASS/* and val/CLASS/*')
    p.add_argument('--source', type=Path, default=Path('/usr/share/openclipart/png'), help='folder of the collection')
    a = p.parse_args()
    if not a.source.is_dir(): p.error(f'--source {a.source}: no such folder; apt install openclipart-png')
    if a.out.exists(): p.error(f'{a.out}: exists; name a folder to make')
    rng,seen = random.Random(0),set()
    for theme in sorted(o for o in a.source.iterdir() if o.is_dir() and o.name not in NO_THEME):
        ims = drawings(theme, rng, seen)
        if len(ims)<LEAST: continue
        for i,im in enumerate(ims):
            f = a.out/('train' if i<len(ims)*4//5 else 'val')/theme.name/f'{i:03}.png'
            f.parent.mkdir(parents=True, exist_ok=True)
            im.save(f)
        print(f'{theme.name}: {len(ims)}')

if __name__=='__main__': main()
