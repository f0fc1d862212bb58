"""The border to the kubelet: gRPC and protobuf on one side, use cases and model values on the other."""
