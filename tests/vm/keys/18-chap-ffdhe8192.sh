# This machine proves who it is by DH-HMAC-CHAP with ffdhe8192.
chap_with ffdhe8192
