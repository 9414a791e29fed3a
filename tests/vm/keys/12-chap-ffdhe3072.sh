# This machine proves who it is by DH-HMAC-CHAP with ffdhe3072.
chap_with ffdhe3072
