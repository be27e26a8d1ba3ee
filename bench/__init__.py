"""Benchmarks: this machine, evidens beside what is used today, correctness shown before speed.

Run them with ``python -m evidens bench [stem ...]`` or, for one provider at a time,
``pytest bench/``.  Both doors read the same cases: the ``cases`` function of ``bench_<stem>.py``.
"""
