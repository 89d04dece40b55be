"""The example project: an order system in miniature, run by ``python -m asyncjobs demo``.

`jobs/` and `tasks/` are written as an app would write them; `services.py` is what they share; `show.py` adds the
work, prints what happens and checks it.
"""
