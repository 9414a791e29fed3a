# This machine proves who it is by DH-HMAC-CHAP with ffdhe8192.
chap_with 5 ffdhe8192
