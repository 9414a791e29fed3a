# This machine proves who it is by DH-HMAC-CHAP with ffdhe2048.
chap_with 1 ffdhe2048
