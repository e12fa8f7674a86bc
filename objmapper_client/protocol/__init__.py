"""The wire without input and output: values in, bytes out; bytes in, values out. Version 1 is here by its own names."""

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
