# Both machines prove who they are by DH-HMAC-CHAP with ffdhe6144.
chap_with ffdhe6144 also
