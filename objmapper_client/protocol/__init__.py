"""The sans-IO codecs of the protocols: values in, bytes out; bytes in, values out. Re-exports version 1."""

from objmapper_client.protocol.v1 import (
    MAX_CONTENT,
    MAX_URI,
    ContentReply,
    DescriptorReply,
    ErrorReply,
    Mode,
    Refused,
    ReplyDecoder,
    Request,
    RequestDecoder,
    Status,
    encode_content_head,
    encode_error,
    encode_request,
    encode_uri,
)

__all__ = [
    "MAX_CONTENT",
    "MAX_URI",
    "ContentReply",
    "DescriptorReply",
    "ErrorReply",
    "Mode",
    "Refused",
    "ReplyDecoder",
    "Request",
    "RequestDecoder",
    "Status",
    "encode_content_head",
    "encode_error",
    "encode_request",
    "encode_uri",
]
