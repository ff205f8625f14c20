"""Reference vectors: small cases with every array that attention computes, for other
implementations to compare with: `minqkv vectors`.
"""
