"""Every two seconds."""

cron_time = "*/2 * * * * *"
is_active = True


async def task(services):
    services.did("poll ticked")
