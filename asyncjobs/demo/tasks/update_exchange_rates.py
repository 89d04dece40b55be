"""Every second, but only in production and staging: in the example's environment it never ticks."""

from asyncjobs import TaskDefinition


def define(services, queue):
    async def task():
        services.did("rates ticked")

    return TaskDefinition(
        task=task, cron_time="* * * * * *", is_active=True, environments=["production", "staging"], timezone="UTC"
    )
