# Both machines prove who they are by DH-HMAC-CHAP with ffdhe3072.
chap_with ffdhe3072 also
