"""A reminder that is due later, never before."""

import time

from asyncjobs import WorkerOptions

worker_options = WorkerOptions(limiter=None)


async def handle(data, job, services, io):
    services.starts["reminder"].append(time.time() - job.added_at.timestamp())
    io.to(f"user:{data['user']}").emit("reminder", {"text": data["text"]})
