import io

import segno


def handle(event, context):
    text = event.query.get("text") or event.body.decode().strip() or "https://example.com"
    try:
        code = segno.make(text)
    except segno.DataOverflowError:
        return {"statusCode": 413, "body": "the text is too long for a QR code\n"}
    picture = io.BytesIO()
    code.save(picture, kind="svg", scale=8, xmldecl=False)
    return {
        "statusCode": 200,
        "headers": {"Content-Type": "image/svg+xml"},
        "body": picture.getvalue(),
    }
