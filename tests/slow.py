"What the methods should give, slowly and obviously: one sample, or one pixel, at a time."
import math
import torch, torch.nn.functional as F

def mask_of(plan):
    "A plan's mask as a tensor on the CPU"
    return plan.mask.on('cpu') if hasattr(plan.mask, 'on') else torch.as_tensor(plan.mask)

def slow_sample(x, s, plan, i, out=None):
    "Sample `x` (c,...) mixed with its partner `s`, one step at a time, in double precision; `out`: what an earlier plan made of `x`"
    w = float(plan.weight[i])
    base = x if out is None else out
    out = base.clone() if w==1 else w*base + (1-w)*s
    if plan.box is not None and all(b>a for a,b in plan.box[i]):
        box = (slice(None), *(slice(a,b) for a,b in plan.box[i]))
        lengths = tuple(int(b-a) for a,b in plan.box[i])
        linear = {1:'linear', 2:'bilinear', 3:'trilinear'}[len(lengths)]
        there = box if plan.start is None else (slice(None), *(slice(o,o+l) for o,l in zip(plan.start[i], lengths)))
        out[box] = F.interpolate(s[None], lengths, mode=linear)[0] if plan.resize else s[there]
    if plan.mask is not None: out = base + mask_of(plan)[min(i, len(mask_of(plan))-1)].double()*(s-base)
    return out

def slow(x, plan, source=None):
    x,source = x.double(),x.double() if source is None else source.double()
    out = [None]*len(x)
    for p in plan.steps: out = [slow_sample(x[i], source[int(p.idx[i])], p, i, out[i]) for i in range(len(x))]
    return torch.stack(out)

def slow_move(y, plan, source=None):
    "One sample at a time; in a shrunk box, one pixel at a time"
    out,source = y.clone(),y if source is None else source
    for plan in plan.steps:
        for i in range(len(y)):
            s = source[int(plan.idx[i])]
            if plan.mask is not None: out[i] = torch.where(mask_of(plan)[min(i, len(mask_of(plan))-1),0], s, y[i])
            elif plan.resize:
                (a,b),(c,d) = plan.box[i]
                for p in range(a,b):
                    for q in range(c,d): out[i,p,q] = s[math.floor((p-a+.5)*s.shape[0]/(b-a)), math.floor((q-c+.5)*s.shape[1]/(d-c))]
            else:
                (a,b),(c,d) = plan.box[i]
                e,f = (a,c) if plan.start is None else plan.start[i]
                out[i,a:b,c:d] = s[e:e+b-a,f:f+d-c]
    return out
