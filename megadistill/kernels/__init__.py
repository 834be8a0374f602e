"""Operations with more than one implementation: one package per op (reference and faster ones), and `dispatch`."""
