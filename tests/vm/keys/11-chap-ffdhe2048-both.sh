# Both machines prove who they are by DH-HMAC-CHAP with ffdhe2048.
chap_with ffdhe2048 also
