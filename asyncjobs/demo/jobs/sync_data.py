"""Each company is a group: its own queue, its own one-a-second, its own consumer that goes when it is idle."""

import asyncio

from asyncjobs import Limiter, WorkerOptions

group = True
worker_options = WorkerOptions(limiter=Limiter(max=1, duration=1), group_idle=2)


async def handle(data, job, services):
    services.began(f"sync {job.group_id}")
    await asyncio.sleep(0.1)
    services.did("sync")
