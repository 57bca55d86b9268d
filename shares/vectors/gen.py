#!/usr/bin/env python3
"""Makes the known answers of Quorate's formats, independently of the Rust code.

Writes vectors.json and ciphertexts.txt beside itself, after it has agreed with x-wing.json and hpke-pq.json. Needs
Python 3.11 and, from PyPI, cryptography and kyber-py (a pure-Python ML-KEM); X-Wing, HPKE, HKDF, Shamir
and every layout are written out below. Never run this to make a failing test pass: a byte that changes here is a format
that changed.
"""
import base64, functools, hashlib, hmac, itertools, json, pathlib, struct
from cryptography.hazmat.primitives import poly1305
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from kyber_py.ml_kem import ML_KEM_768

HERE = pathlib.Path(__file__).parent


def u16(n): return struct.pack('>H', n)
def u32(n): return struct.pack('>I', n)
def u64(n): return struct.pack('>Q', n)
def sha256(*parts): return hashlib.sha256(b''.join(parts)).digest()
def hmac256(key, message): return hmac.new(key, message, 'sha256').digest()
def raw(public): return public.public_bytes(Encoding.Raw, PublicFormat.Raw)
def fixed(name, length=32):
    """Bytes that look random and are the same in every run."""
    return hashlib.shake_256(b'quorate vectors: ' + name.encode()).digest(length)


def expand(prk, info, length, algorithm='sha256'):
    """HKDF-Expand, RFC 5869."""
    out, block, i = b'', b'', 1
    while len(out) < length:
        block = hmac.new(prk, block + info + bytes([i]), algorithm).digest()
        out, i = out + block, i + 1
    return out[:length]


# ---- FORMATS 2: master keys

K = bytes(range(32))
CLUSTER = bytes.fromhex('00112233445566778899aabbccddeeff')
UID = bytes.fromhex('0f1e2d3c4b5a69788796a5b4c3d2e1f0')
VERSION = 7
NAME = 'billing/cards'


def kcv(key, cluster, uid, version):
    return expand(key, b'quorate/v1/kcv\0' + cluster + uid + u32(version), 32)


def root(key, purpose, cluster, uid, version):
    return expand(key, b'quorate/v1/root/' + purpose.encode() + b'\0' + cluster + uid + u32(version), 32)


# ---- Shamir over GF(256), byte by byte

def gf_mul(a, b):
    r = 0
    for _ in range(8):
        if b & 1:
            r ^= a
        b >>= 1
        a = (a << 1) ^ (0x11b if a & 0x80 else 0)
    return r


def gf_pow(x, n): return functools.reduce(gf_mul, [x] * n, 1)
def gf_inverse(a): return gf_pow(a, 254)


def split(secret, coefficients, xs):
    """coefficients[d - 1] holds the coefficients of x^d, one for each byte of the secret."""
    def share(x):
        out = bytearray(secret)
        for d, row in enumerate(coefficients, 1):
            for i, c in enumerate(row):
                out[i] ^= gf_mul(c, gf_pow(x, d))
        return bytes(out)
    return {x: share(x) for x in xs}


def combine(shares):
    out = bytearray(32)
    for xi, y in shares.items():
        num = den = 1
        for xj in shares:
            if xj != xi:
                num, den = gf_mul(num, xj), gf_mul(den, xi ^ xj)
        weight = gf_mul(num, gf_inverse(den))
        for i, byte in enumerate(y):
            out[i] ^= gf_mul(weight, byte)
    return bytes(out)


# ---- X-Wing (draft-connolly-cfrg-xwing-kem) and HPKE (RFC 9180) in base mode with it

XWING_LABEL = rb'\.//^' + b'\\'


def xwing_keys(seed):
    e = hashlib.shake_256(seed).digest(96)
    ek, dk = ML_KEM_768._keygen_internal(e[:32], e[32:64])
    x = X25519PrivateKey.from_private_bytes(e[64:])
    return (dk, x), ek + raw(x.public_key())


def xwing_combine(ss_m, ss_x, ct_x, pk_x): return hashlib.sha3_256(ss_m + ss_x + ct_x + pk_x + XWING_LABEL).digest()


def xwing_encapsulate(pk, randomness):
    ss_m, ct_m = ML_KEM_768._encaps_internal(pk[:1184], randomness[:32])
    ephemeral = X25519PrivateKey.from_private_bytes(randomness[32:])
    ct_x = raw(ephemeral.public_key())
    ss_x = ephemeral.exchange(X25519PublicKey.from_public_bytes(pk[1184:]))
    return xwing_combine(ss_m, ss_x, ct_x, pk[1184:]), ct_m + ct_x


def xwing_decapsulate(seed, enc):
    (dk, x), pk = xwing_keys(seed)
    ss_x = x.exchange(X25519PublicKey.from_public_bytes(enc[1088:]))
    return xwing_combine(ML_KEM_768.decaps(dk, enc[:1088]), ss_x, enc[1088:], pk[1184:])


EXPORT_ONLY, CHACHA = 0xFFFF, 0x0003


class Hpke:
    """A base-mode context of KEM 0x647a, KDF HKDF-SHA256 and the given AEAD."""
    def __init__(self, shared_secret, info, aead):
        self.suite = b'HPKE' + u16(0x647A) + u16(0x0001) + u16(aead)
        context = b'\0' + self.extract(b'', b'psk_id_hash', b'') + self.extract(b'', b'info_hash', info)
        secret = self.extract(shared_secret, b'secret', b'')
        if aead == CHACHA:
            self.key = self.expand(secret, b'key', context, 32)
            self.nonce = self.expand(secret, b'base_nonce', context, 12)
        self.exporter = self.expand(secret, b'exp', context, 32)

    def extract(self, salt, label, ikm): return hmac256(salt, b'HPKE-v1' + self.suite + label + ikm)
    def expand(self, prk, label, info, length):
        return expand(prk, u16(length) + b'HPKE-v1' + self.suite + label + info, length)
    def export(self, context): return self.expand(self.exporter, b'sec', context, 32)
    def seal(self, plaintext): return ChaCha20Poly1305(self.key).encrypt(self.nonce, plaintext, b'')


# ---- FORMATS 3: committees, batches, records

def committee_hash(epoch, t, holders, recovery_pk=None):
    places = b''.join(bytes([x]) + u64(node) + u64(skgen) + sha256(pk) for x, node, skgen, pk in holders)
    recovery = sha256(recovery_pk) if recovery_pk else bytes(32)
    return sha256(b'quorate/v1/committee\0', CLUSTER, u64(epoch), bytes([t, len(holders)]), places, recovery)


def share_info(bound, x, node, skgen): return b'quorate/v1/share\0' + bound + bytes([x]) + u64(node) + u64(skgen)


def share_commitment(batch, epoch, uid, version, t, n, x, y):
    names = CLUSTER + batch + u64(epoch) + uid + u32(version) + bytes([t, n, x])
    return sha256(b'quorate/v1/share-commit\0', names, y)[:16]


def seal_share(kek, index, epoch, uid, version, t, n, x, commitment, check, y):
    names = CLUSTER + u64(epoch) + uid + u32(version) + bytes([t, n, x])
    aad = b'quorate/v1/share-aad\0' + names + commitment + check
    return ChaCha20Poly1305(kek).encrypt(bytes(8) + u32(index), y, aad)


def sealing(t, n, recovery):
    """One committee, one batch and two records; the members' node ids are 3, 10, 17, ..."""
    epoch, dealer = 5, 3
    tag = f'{t} of {n}'
    batch = fixed('batch ' + tag, 16)
    seeds = [fixed(f'share seed {i} {tag}') for i in range(n)]
    holders = [(i + 1, 3 + 7 * i, 100 + i, xwing_keys(seed)[1]) for i, seed in enumerate(seeds)]
    recovery_seed = fixed('recovery seed')
    recovery_pk = xwing_keys(recovery_seed)[1] if recovery else None
    chash = committee_hash(epoch, t, holders, recovery_pk)
    bound = b'QBH1\x01' + CLUSTER + batch + u64(epoch) + chash + u64(dealer)
    assert len(bound) == 85
    header, keks, randomness = bound + bytes([n]), {}, []

    def encapsulate(x, node, skgen, pk):
        r = fixed(f'encapsulation {x} {tag}', 64)
        randomness.append(r.hex())
        ss, enc = xwing_encapsulate(pk, r)
        keks[x] = Hpke(ss, share_info(bound, x, node, skgen), EXPORT_ONLY).export(b'quorate/v1/share-kek')
        return enc
    for x, node, skgen, pk in holders:
        enc = encapsulate(x, node, skgen, pk)
        assert Hpke(xwing_decapsulate(seeds[x - 1], enc), share_info(bound, x, node, skgen), EXPORT_ONLY).export(b'quorate/v1/share-kek') == keks[x]
        header += bytes([x]) + u64(node) + u64(skgen) + enc
    header += bytes([recovery]) + (encapsulate(0xFF, 0, 0, recovery_pk) if recovery else b'')

    check = kcv(K, CLUSTER, UID, VERSION)
    def record(index, shares, lie=b''):
        out = b'QSH1' + batch + u32(index) + u64(epoch) + UID + u32(VERSION) + bytes([t, n])
        for x, y in shares.items():
            commitment = share_commitment(batch, epoch, UID, VERSION, t, n, x, y + lie)
            out += commitment + seal_share(keks[x], index, epoch, UID, VERSION, t, n, x, commitment, check, y)
        out += bytes([recovery])
        if recovery:
            out += seal_share(keks[0xFF], index, epoch, UID, VERSION, t, n, 0xFF, bytes(16), check, K)
        return out.hex()
    records = []
    for index in (0, 258):
        rows = [fixed(f'coefficient {d} {index} {tag}') for d in range(1, t)]
        shares = split(K, rows, range(1, n + 1))
        assert all(combine({x: shares[x] for x in some}) == K for some in itertools.combinations(shares, t))
        records.append({'index': index, 'shares': [y.hex() for y in shares.values()], 'record': record(index, shares)})
    return {'t': t, 'n': n, 'epoch': epoch, 'dealer': dealer, 'batch_id': batch.hex(),
            'holders': [{'node': node, 'skgen': skgen, 'seed': seed.hex(), 'pk_sha256': sha256(pk).hex()}
                        for (_, node, skgen, pk), seed in zip(holders, seeds)],
            'recovery_seed': recovery_seed.hex() if recovery else None, 'committee_hash': chash.hex(),
            'randomness': randomness, 'header': header.hex(), 'keks': {x: k.hex() for x, k in keks.items()},
            'kcv': check.hex(), 'records': records, 'lying_record': record(3, shares, b'not the share')}


# ---- FORMATS 4: locks

def lock(u, n, pin_kind, pin_field, pin):
    """The lock of node 3, generation 9; its peers are 10, 17, ..."""
    node, generation = 3, 9
    tag = f'lock {u} of {n}'
    w = fixed('w ' + tag) if n else bytes(32)
    rows = [fixed(f'coefficient {d} {tag}') for d in range(1, u)]
    pieces = split(w, rows, range(1, n + 1))
    section = u64(generation) + bytes([u, n, pin_kind]) + u16(len(pin_field)) + pin_field
    peers = []
    for x, z in pieces.items():
        peer, keyno, seed = 3 + 7 * x, 40 + x, fixed(f'lock seed {x} {tag}')
        pk = xwing_keys(seed)[1]
        randomness = fixed(f'encapsulation {x} {tag}', 64)
        ss, enc = xwing_encapsulate(pk, randomness)
        names = CLUSTER + u64(node) + u64(peer) + u64(generation) + bytes([u, n, x]) + u64(keyno)
        ct = Hpke(ss, b'quorate/v1/lock\0' + names, CHACHA).seal(z)
        section += u64(peer) + bytes([x]) + u64(keyno) + pk + enc + ct
        nonce, roster = fixed('boot nonce'), u64(6) + u64(10) + u64(1234)
        request = b'QLO1' + CLUSTER + u64(node) + u64(peer) + u64(generation) + bytes([u, n, x]) + u64(keyno) + nonce + enc + ct
        assert len(request) == 1255
        exporter = fixed('exporter key')
        bound = b'QLR1\0' + roster
        reply = bound + ChaCha20Poly1305(exporter).encrypt(bytes(12), z, bound)
        assert len(reply) == 77
        peers.append({'peer': peer, 'keyno': keyno, 'seed': seed.hex(), 'randomness': randomness.hex(), 'piece': z.hex(),
                      'request': request.hex(), 'request_sha256': sha256(request).hex(), 'reply': reply.hex()})
    op_seed, storage, share = fixed('op seed'), [(1, fixed('D 1')), (4, fixed('D 4'))], [(7, fixed('share 7')), (2**40, fixed('share 2^40'))]
    plain = op_seed + bytes([len(storage)]) + b''.join(bytes([d]) + key for d, key in storage)
    plain += bytes([len(share)]) + b''.join(u64(g) + seed for g, seed in share)
    key = expand(hmac256(pin, w), b'quorate/v1/bundle\0' + CLUSTER + u64(node) + u64(generation), 32)
    bundle = ChaCha20Poly1305(key).encrypt(bytes(12), plain, sha256(section))
    return {'u': u, 'n': n, 'node': node, 'generation': generation, 'pin_kind': pin_kind, 'pin_field': pin_field.hex(),
            'pin': pin.hex(), 'w': w.hex(), 'peers': peers, 'boot_nonce': fixed('boot nonce').hex(),
            'roster': {'term': 6, 'leader': 10, 'index': 1234}, 'exporter_key': fixed('exporter key').hex(),
            'denied_reply': (b'QLR1\x01' + u64(6) + u64(10) + u64(1234)).hex(),
            'op_seed': op_seed.hex(), 'storage_keys': [[d, k.hex()] for d, k in storage],
            'share_keys': [[g, s.hex()] for g, s in share],
            'bundle_plain': plain.hex(), 'section': (section + u32(len(bundle)) + bundle).hex()}


# ---- FORMATS 6: a share on its way

def transit(direction, counter):
    key, request, share = fixed('exporter key of a pair'), b'a request', fixed('a share')
    sealed = ChaCha20Poly1305(key).encrypt(u32(direction) + u64(counter), share, sha256(request))
    return {'key': key.hex(), 'direction': direction, 'counter': counter, 'request': request.hex(),
            'share': share.hex(), 'sealed': sealed.hex()}


# ---- FORMATS 7: ciphertexts

CHUNK = 16384
SUITES = {'1': ('AEAD_CHACHA20_POLY1305', 'sha256', ChaCha20Poly1305), '2': ('AEAD_AES_256_GCM', 'sha512', AESGCM)}
SALT = bytes(range(0x40, 0x58))


def canonical(context):
    items = sorted((k.encode(), v.encode()) for k, v in context.items())
    return u16(len(items)) + b''.join(u16(len(k)) + k + u16(len(v)) + v for k, v in items)


def header(kind, suite, name, version):
    n = name.encode()
    return b'QRT1' + kind.encode() + suite.encode() + bytes([len(n)]) + n + u32(version)


def ctx32(hd, context): return sha256(b'quorate/v1/ctx\0', u16(len(hd)), hd, canonical(context))


def derive(root_key, suite, salt, ctx):
    name, algorithm, _ = SUITES[suite]
    okm = expand(root_key, b'c2sp.org/chunked-encryption@v1+' + name.encode() + b'\0' + salt + ctx, 76, algorithm)
    return okm[:32], okm[32:44], okm[44:]


def nonce(base, i): return (int.from_bytes(base, 'big') ^ i).to_bytes(12, 'big')


def seal(root_key, suite, salt, ctx, plaintext):
    key, base, commitment = derive(root_key, suite, salt, ctx)
    out, i = salt + commitment, 0
    while True:
        chunk = plaintext[i * CHUNK:(i + 1) * CHUNK]
        out += SUITES[suite][2](key).encrypt(nonce(base, i), chunk, None)
        i += 1
        if len(chunk) < CHUNK:
            return out


def b64(b): return base64.urlsafe_b64encode(b).rstrip(b'=').decode()
def text(kind, suite, name, version, body): return f'qrt1:{name}:{version}:{kind}{suite}:{b64(body)}'


def data_plane(v):
    v['context'] = []
    for d in ({}, {'app': 'web'}, {'tenant': '42', 'app': 'web', 'é': 'ü'}):
        v['context'].append({'map': d, 'canonical': canonical(d).hex(), 'ctx32_m1': ctx32(header('m', '1', NAME, VERSION), d).hex()})
    v['seal'] = []
    root_enc = root(K, 'enc', CLUSTER, UID, VERSION)
    for suite in '12':
        for message in (b'', b'hello world', b'A' * 16383, b'B' * 16384, b'C' * 65536):
            for kind, d in (('m', {}), ('m', {'app': 'web', 'tenant': '42'}), ('d', {'app': 'web'})):
                if kind == 'd' and len(message) != 11:
                    continue
                p = message if kind == 'm' else bytes(range(100, 132))
                hd = header(kind, suite, NAME, VERSION)
                ctx = ctx32(hd, d)
                body = seal(root_enc, suite, SALT, ctx, p)
                e = {'kind': kind, 'suite': suite, 'context': d, 'salt': SALT.hex(), 'pt_len': len(p),
                     'pt_sha256': sha256(p).hex(), 'overhead_body': len(body) - len(p),
                     'overhead_binary': len(hd) + len(body) - len(p), 'body_sha256': sha256(body).hex()}
                if len(p) < 64:
                    t = text(kind, suite, NAME, VERSION, body)
                    e.update(pt=p.hex(), header=hd.hex(), ctx32=ctx.hex(), body=body.hex(), text=t, text_len=len(t))
                v['seal'].append(e)
    message = b'hello world'
    ctx = ctx32(header('m', '1', NAME, VERSION), {})
    v['det_salt'] = hmac256(root(K, 'det', CLUSTER, UID, VERSION), b'quorate/v1/det\0' + ctx + sha256(message))[:24].hex()
    ctx = ctx32(header('h', '1', NAME, VERSION), {'app': 'web'})
    tag = hmac256(root(K, 'mac', CLUSTER, UID, VERSION), b'quorate/v1/mac\0' + ctx + message)
    v['mac'] = {'msg': message.hex(), 'context': {'app': 'web'}, 'tag': tag.hex()}
    sk = Ed25519PrivateKey.from_private_bytes(root(K, 'sign', CLUSTER, UID, VERSION))
    v['ed25519'] = {'pk': raw(sk.public_key()).hex(), 'msg': message.hex(), 'sig': sk.sign(message).hex()}


def shamir(v):
    for t, n in ((2, 3), (3, 5)):
        rows = [hashlib.sha256(b'coef%d' % i).digest() for i in range(1, t)]
        shares = split(K, rows, range(1, n + 1))
        commitments = {x: share_commitment(bytes(16), 1, UID, VERSION, t, n, x, y).hex() for x, y in shares.items()}
        v[f'shamir_{t}of{n}'] = {'coefs': [r.hex() for r in rows], 'shares': {x: y.hex() for x, y in shares.items()},
                                 'commits_epoch1_batch0': commitments}


# ---- ciphertexts.txt: what opens, what is refused, what is not a ciphertext

def two_key_chunk(one, other):
    """A chunk whose tag holds under two (key, nonce) pairs: Poly1305 does not commit to its key. Solves for one block."""
    p = 2**130 - 5
    def parts(key, n):
        stream = Cipher(algorithms.ChaCha20(key, bytes(4) + n), None).encryptor().update(bytes(32))
        return int.from_bytes(stream[:16], 'little') & 0x0ffffffc0ffffffc0ffffffc0fffffff, int.from_bytes(stream[16:], 'little')
    (r1, s1), (r2, s2) = parts(*one), parts(*other)
    length = int.from_bytes(struct.pack('<QQ', 0, 32), 'little') + 2**128
    for attempt in itertools.count():
        first = fixed(f'block {attempt}', 16)
        block = int.from_bytes(first, 'little') + 2**128
        rest = [(block * r**3 + length * r + s) for r, s in ((r1, s1), (r2, s2))]
        for wraps in range(-4, 5):
            c = ((rest[1] - rest[0] + wraps * 2**128) * pow(r1**2 - r2**2, -1, p)) % p - 2**128
            if not 0 <= c < 2**128:
                continue
            chunk = first + c.to_bytes(16, 'little')
            tags = {tag_of(key, n, chunk) for key, n in (one, other)}
            if len(tags) == 1:
                return chunk + tags.pop()


def tag_of(key, n, chunk):
    one_time = Cipher(algorithms.ChaCha20(key, bytes(4) + n), None).encryptor().update(bytes(32))
    return poly1305.Poly1305.generate_tag(one_time, chunk + struct.pack('<QQ', 0, len(chunk)))


def flip(data, at): return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]


def ciphertext_cases():
    rk = root(K, 'enc', CLUSTER, UID, VERSION)
    web = {'app': 'web', 'tenant': '42'}
    message = b'hello world'
    hd = header('m', '1', NAME, VERSION)
    plain = seal(rk, '1', SALT, ctx32(hd, {}), message)
    bound = seal(rk, '1', SALT, ctx32(hd, web), message)
    good, good_web = text('m', '1', NAME, VERSION, plain), text('m', '1', NAME, VERSION, bound)
    dk = text('d', '1', NAME, VERSION, seal(rk, '1', SALT, ctx32(header('d', '1', NAME, VERSION), {}), bytes(range(100, 132))))
    long = b'ab' * CHUNK + b'tail'
    chunked = seal(rk, '1', SALT, ctx32(hd, {}), long)
    full = CHUNK + 16
    pre, c0, c1, c2 = chunked[:56], chunked[56:56 + full], chunked[56 + full:56 + 2 * full], chunked[56 + 2 * full:]
    fields = good.split(':')
    def with_field(i, value): return ':'.join(fields[:i] + [value] + fields[i + 1:])
    body = fields[4]
    other_root = root(fixed('another K'), 'enc', CLUSTER, UID, VERSION)
    (ka, na, commit_a), (kb, nb, _) = (derive(r, '1', SALT, ctx32(hd, {})) for r in (rk, other_root))
    crafted_chunk = two_key_chunk((ka, na), (kb, nb))
    crafted_a, crafted_b = (ChaCha20Poly1305(k).decrypt(n, crafted_chunk, None) for k, n in ((ka, na), (kb, nb)))
    crafted = text('m', '1', NAME, VERSION, SALT + commit_a + crafted_chunk)
    assert crafted_a != crafted_b
    suite2 = text('m', '2', NAME, VERSION, seal(rk, '2', SALT, ctx32(header('m', '2', NAME, VERSION), {}), message))
    def m(b): return text('m', '1', NAME, VERSION, b)

    yield 'Opens: no context.', 'opens', good, {}, message
    yield 'Opens: the order in which a context is given does not matter.', 'opens', good_web, {'tenant': '42', 'app': 'web'}, message
    yield 'Opens: an empty message is one empty chunk.', 'opens', m(seal(rk, '1', SALT, ctx32(hd, {}), b'')), {}, b''
    yield 'Opens: a data key is a kind of its own.', 'opens', dk, {}, bytes(range(100, 132))
    yield 'Opens: one byte short of a chunk.', 'opens', m(seal(rk, '1', SALT, ctx32(hd, {}), b'x' * (CHUNK - 1))), {}, b'x' * (CHUNK - 1)
    yield 'Opens: a full chunk is followed by an empty one.', 'opens', m(seal(rk, '1', SALT, ctx32(hd, {}), b'x' * CHUNK)), {}, b'x' * CHUNK
    yield 'Opens: three chunks.', 'opens', m(chunked), {}, long
    yield 'Opens: the shortest name, the highest version.', 'opens', text('m', '1', 'a', 2**32 - 1, seal(rk, '1', SALT, ctx32(header('m', '1', 'a', 2**32 - 1), {}), message)), {}, message
    yield 'Opens: made so that its one chunk also authenticates under the next case\'s root.', 'opens', crafted, {}, crafted_a
    yield ('Refused: the same under that other root, where a cipher without commitment would give another plaintext.', 'refused', crafted, {}, other_root)

    yield 'Refused: another root.', 'refused', good, {}, other_root
    yield 'Refused: the root of another purpose.', 'refused', good, {}, root(K, 'mac', CLUSTER, UID, VERSION)
    yield 'Refused: a context where none was.', 'refused', good, {'app': 'web'}, None
    yield 'Refused: no context where one was.', 'refused', good_web, {}, None
    yield 'Refused: a name too many.', 'refused', good_web, dict(web, extra='1'), None
    yield 'Refused: a name too few.', 'refused', good_web, {'app': 'web'}, None
    yield 'Refused: another case of a value.', 'refused', good_web, dict(web, app='Web'), None
    yield 'Refused: another case of a name.', 'refused', good_web, {'App': 'web', 'tenant': '42'}, None
    yield 'Refused: name and value exchanged.', 'refused', good_web, {'web': 'app', 'tenant': '42'}, None
    nfc = m(seal(rk, '1', SALT, ctx32(hd, {'user': 'é'}), message))
    yield 'Opens: a value outside ASCII, composed.', 'opens', nfc, {'user': 'é'}, message
    yield 'Refused: the same value decomposed. Contexts are bytes.', 'refused', nfc, {'user': 'e\u0301'}, None
    yield 'Refused: another version of the key.', 'refused', with_field(2, '8'), {}, None
    yield 'Refused: another name of the key.', 'refused', with_field(1, 'billing/card'), {}, None
    yield 'Refused: a message shown as a data key.', 'refused', with_field(3, 'd1'), {}, None
    yield 'Refused: a data key shown as a message.', 'refused', dk.replace(':d1:', ':m1:'), {}, None
    for what, at in (('salt', 0), ('last byte of the salt', 23), ('commitment', 24), ('last byte of the commitment', 55), ('sealed message', 56), ('tag', 67), ('last byte', len(plain) - 1)):
        yield f'Refused: one bit of the {what} flipped.', 'refused', m(flip(plain, at)), {}, None
    yield 'Refused: one byte less.', 'refused', m(plain[:-1]), {}, None
    yield 'Refused: one byte more.', 'refused', m(plain + b'\0'), {}, None
    yield 'Refused: the message cut out, its tag kept.', 'refused', m(plain[:56] + plain[-16:]), {}, None
    yield 'Refused: the salt of another ciphertext.', 'refused', m(fixed('salt', 24) + plain[24:]), {}, None
    yield 'Refused: the middle chunk dropped.', 'refused', m(pre + c0 + c2), {}, None
    yield 'Refused: two chunks exchanged.', 'refused', m(pre + c1 + c0 + c2), {}, None

    for why, t in (
        ('nothing', ''), ('the magic alone', 'qrt1:'), ('no body', ':'.join(fields[:4])),
        ('an empty body', with_field(4, '')),
        ('the magic in upper case', with_field(0, 'QRT1')), ('another magic', with_field(0, 'qrt2')),
        ('a space in front', ' ' + good), ('a newline behind', good + '\n'), ('a carriage return behind', good + '\r'),
        ('a newline inside the base64', with_field(4, body[:40] + '\n' + body[40:])),
        ('padding', m(chunked[:0] + plain[:72]) + '='), ('padding where it would belong', with_field(4, body + '=')),
        ('a set bit in the last character that no byte has', with_field(4, body[:-1] + chr(ord(body[-1]) + 1))),
        ('a length that no base64 has', with_field(4, body[:-2])),
        ('standard base64 instead of base64url', with_field(4, '+/' + body[2:])),
        ('a colon too many', good + ':'),
        ('a key name in upper case', with_field(1, 'Billing/cards')), ('an empty key name', with_field(1, '')),
        ('a key name with //', with_field(1, 'billing//cards')), ('a key name with ..', with_field(1, 'billing/../cards')),
        ('a key name that ends in /', with_field(1, 'billing/')), ('a key name that begins with /', with_field(1, '/billing')),
        ('a key name of 128 bytes', with_field(1, 'k' * 128)), ('a key name outside ASCII', with_field(1, 'billing/cärds')),
        ('a version with a leading zero', with_field(2, '07')), ('version zero', with_field(2, '0')),
        ('no version', with_field(2, '')), ('a version with a sign', with_field(2, '+7')),
        ('a negative version', with_field(2, '-7')), ('a version of 2^32', with_field(2, '4294967296')),
        ('a version in other digits', with_field(2, '٧')), ('a version with a space', with_field(2, ' 7')),
        ('no kind', with_field(3, '')), ('a kind without suite', with_field(3, 'm')), ('a suite of two digits', with_field(3, 'm11')),
        ('a kind in upper case', with_field(3, 'M1')), ('an unknown kind', with_field(3, 'x1')),
        ('a kind that this version cannot open: a MAC', with_field(3, 'h1')), ('a kind that this version cannot open: a signature', with_field(3, 's1')),
        ('suite zero', with_field(3, 'm0')), ('an unknown suite', with_field(3, 'm9')),
        ('suite 2, which this version does not open', suite2),
        ('a body that ends in the commitment', m(plain[:55])), ('a body without a chunk', m(plain[:56])),
        ('a body whose chunk is shorter than a tag', m(plain[:71])),
        ('a body that ends with a full chunk', m(pre + c0)), ('a full chunk and half a tag', m(pre + c0 + c2[:8])),
    ):
        yield f'Malformed: {why}.', 'malformed', t, {}, None


def write_cases(path):
    rk = root(K, 'enc', CLUSTER, UID, VERSION)
    lines = ['# Ciphertexts in text form: each must open, be refused, or be malformed, for ever.', '# Made by gen.py.', '#',
             '# expect:    opens | refused (parses, but does not open) | malformed (does not parse)',
             '# root:      the encryption root', '# context:   a name and a value, as JSON; one line each',
             '# sha256:    of the plaintext, if it opens', '# text:      the ciphertext, as a JSON string', '']
    for comment, expect, t, context, extra in ciphertext_cases():
        lines += [f'# {comment}', f'expect: {expect}']
        if expect != 'malformed':
            lines.append(f'root: {(extra if expect == "refused" and extra else rk).hex()}')
        lines += [f'context: {json.dumps([k, v])}' for k, v in context.items()]
        if expect == 'opens':
            lines.append(f'sha256: {sha256(extra).hex()}')
        lines += [f'text: {json.dumps(t)}', '']
    path.write_text('\n'.join(lines))


def check_against_others():
    """X-Wing and HPKE above give what the drafts' own vectors say."""
    for e in json.loads((HERE / 'x-wing.json').read_text())['vectors']:
        pk = xwing_keys(bytes.fromhex(e['seed']))[1]
        assert pk.hex() == e['pk']
        assert [part.hex() for part in xwing_encapsulate(pk, bytes.fromhex(e['eseed']))] == [e['ss'], e['ct']]
    e = json.loads((HERE / 'hpke-pq.json').read_text())
    ss = xwing_decapsulate(bytes.fromhex(e['skRm']), bytes.fromhex(e['enc']))
    context = Hpke(ss, bytes.fromhex(e['info']), CHACHA)
    assert (context.key.hex(), context.nonce.hex(), context.exporter.hex()) == (e['key'], e['base_nonce'], e['exporter_secret'])
    assert all(context.export(bytes.fromhex(x['exporter_context'])).hex() == x['exported_value'] for x in e['exports'])


if __name__ == '__main__':
    check_against_others()
    v = {'K': K.hex(), 'cluster_id': CLUSTER.hex(), 'key_uid': UID.hex(), 'version': VERSION, 'name': NAME,
         'kcv': kcv(K, CLUSTER, UID, VERSION).hex(),
         'roots': {p: root(K, p, CLUSTER, UID, VERSION).hex() for p in ('enc', 'det', 'mac', 'sign')}}
    data_plane(v)
    shamir(v)
    v['sealing'] = [sealing(1, 1, False), sealing(2, 3, False), sealing(3, 5, False), sealing(2, 2, True)]
    v['locks'] = [lock(0, 0, 0, b'solo pin', b'solo pin'), lock(1, 2, 0, fixed('pin'), fixed('pin')),
                  lock(2, 4, 1, b'/etc/quorate/pin', fixed('pin in a file')), lock(3, 8, 2, b'quorate.pin', fixed('pin in a credential'))]
    v['transit'] = [transit(0, 0), transit(1, 2**33 + 5)]
    (HERE / 'vectors.json').write_text(json.dumps(v, indent=1, ensure_ascii=False) + '\n')
    write_cases(HERE / 'ciphertexts.txt')
