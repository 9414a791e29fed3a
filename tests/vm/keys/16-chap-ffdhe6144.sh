# This machine proves who it is by DH-HMAC-CHAP with ffdhe6144.
chap_with ffdhe6144
