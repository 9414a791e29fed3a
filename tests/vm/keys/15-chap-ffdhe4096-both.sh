# Both machines prove who they are by DH-HMAC-CHAP with ffdhe4096.
chap_with ffdhe4096 also
