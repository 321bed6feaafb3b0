"""MLflow's webhook signatures, with which the controller signs its nudges and pods check them."""

from __future__ import annotations

import base64
import hashlib
import hmac

WEBHOOK_PATH = "/v1/registry/webhook"
"""Where a pod takes them."""
SIGNATURE_HEADER = "X-MLflow-Signature"
TIMESTAMP_HEADER = "X-MLflow-Timestamp"
DELIVERY_HEADER = "X-MLflow-Delivery-Id"


def webhook_signature(body: bytes, delivery: str, timestamp: str, secret: str) -> str:
    """The signature header of a delivery: over its id, its unix time and its raw body."""
    signed = f"{delivery}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()
