# This machine proves who it is by DH-HMAC-CHAP with ffdhe6144.
chap_with 4 ffdhe6144
