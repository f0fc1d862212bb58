"""Protobuf to frozen, validated model values, and back; one module per family.

`from_proto` functions accept what the kubelet sends and raise InvalidSpec, never anything else, with the path of the
field and its value for what cannot be honoured. CRI's zero that means "not given" ends here as None. What needs more
than the message (whether a file exists, whether the node can) is decided behind the border.
"""
