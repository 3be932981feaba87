"""What asks the service: one client over HTTP, whether the service is elsewhere or an app in this process.

`service_client.py` has a method for each surface, with the ingress's own schemas going in and coming out.
`app_transport.py` puts the client in front of an ASGI app of this process, streaming as over a network.
`kept_stream.py` reads an answer to its end over as many connections as it takes.
`failures.py` turns error replies back into the errors that they were on the other side.
"""
