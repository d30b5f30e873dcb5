"What the documentation needs from us: a processor for nbdev, and `README.md` written from `nbs/index.ipynb` without Quarto."
def drop_timing(cell):
    "An nbdev `doc_procs` processor: timings in a cell's metadata make its API heading vanish from \"On this page\""
    cell.get('metadata', {}).pop('execution', None)
