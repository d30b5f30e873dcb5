"Hands `settings.ini` to setuptools; everything static stands in `pyproject.toml`."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

ini = ConfigParser(interpolation=None)
ini.read(Path(__file__).parent/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

statuses = ['1 - Planning', '2 - Pre-Alpha', '3 - Alpha', '4 - Beta', '5 - Production/Stable', '6 - Mature', '7 - Inactive']
first,last = (int(cfg[k].split('.')[1]) for k in ('min_python', 'max_python'))
suffix = '_requirements'

setup(author=cfg['author'],
      keywords=cfg['keywords'].split(),
      python_requires=f">={cfg['min_python']}",
      install_requires=cfg['requirements'].split(),
      extras_require={k[:-len(suffix)]: cfg[k].split() for k in cfg if k.endswith(suffix)},
      classifiers=[f"Development Status :: {statuses[int(cfg['status'])-1]}", f"Intended Audience :: {cfg['audience']}",
                   'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Natural Language :: English']
                  + [f'Programming Language :: Python :: 3.{i}' for i in range(first, last+1)])
