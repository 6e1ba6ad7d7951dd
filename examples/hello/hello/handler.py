import os

GREETING = os.environ.get("greeting", "Hello")


def handle(event, context):
    name = event.query.get("name") or event.body.decode().strip() or "world"
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "text/plain; charset=utf-8"},
        "body": f"{GREETING}, {name}!\n",
    }
