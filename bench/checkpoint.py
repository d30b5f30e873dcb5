"""What saving costs: seconds and bytes of a checkpoint, against the epoch that it saves.

    python bench/checkpoint.py [--arch xresnet18] [--epochs 4] [--size 32]

Trains a network on scikit-learn's digits, with `Resume` at the end of every epoch, and times the parts of a checkpoint."""
import argparse,tempfile,time
from pathlib import Path
from fastai.vision.all import *
from sklearn.datasets import load_digits
from fastmix import resume as R

def timed(f, log):
    def g(*args, **kw):
        t = time.perf_counter()
        try: return f(*args, **kw)
        finally: log.append(time.perf_counter()-t)
    return g

if __name__=='__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--arch', default='xresnet18')
    p.add_argument('--epochs', type=int, default=4)
    p.add_argument('--size', type=int, default=32)
    args = p.parse_args()
    x,y = load_digits(return_X_y=True)
    x = F.interpolate(torch.tensor(x/8-1).float().view(-1,1,8,8), args.size).expand(-1,3,-1,-1)
    ds = list(zip(x, torch.tensor(y)))
    dls = DataLoaders(DataLoader(ds[:1400], bs=64, shuffle=True), DataLoader(ds[1400:], bs=128), device=default_device())
    save,write,begin = [],[],[]
    R.Resume._save,R.write_checkpoint,R.newest_checkpoint = timed(R.Resume._save, save),timed(R.write_checkpoint, write),timed(R.newest_checkpoint, begin)
    with tempfile.TemporaryDirectory() as d:
        for i in range(2):
            learn = Learner(dls, globals()[args.arch](n_out=10), CrossEntropyLossFlat(), path=Path(d)).remove_cb(ProgressCallback)
            t = time.perf_counter()
            with learn.no_logging(): learn.fit_one_cycle(args.epochs, 1e-3, cbs=R.Resume('run'))
            if not i: total = time.perf_counter()-t
        size = max(f.stat().st_size for f in Path(d).rglob('*.pth'))
    n = sum(p.numel() for p in learn.model.parameters())
    epoch = (total-sum(save))/args.epochs
    med = sorted(save)[len(save)//2]
    print(f'{args.arch}: {n/1e6:.1f} M parameters, {size/1e6:.0f} MB a checkpoint ({size/n:.1f} bytes a parameter: weights and the two averages of Adam)')
    print(f'epoch {epoch:.2f} s, checkpoint {med:.2f} s ({100*med/epoch:.1f}% of it; writing, checksum and fsync {sorted(write)[len(write)//2]:.2f} s), reading {begin[-1]:.2f} s')
