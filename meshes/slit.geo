// The square (−1, 1)² without the slit [0, 1) × {0}: a crack from the origin to the right side.
// The slit is two curves in the same place, with nodes of their own and only the tip in common: what is above it and
// what is below do not touch there.
//   gmsh -2 -format msh41 slit.geo                     about 850 vertices
//   gmsh -2 -setnumber h 0.05 -setnumber grading 10 …  another mesh size, ten times finer at the tip
DefineConstant[ h = 0.08, grading = 1 ];
Geometry.AutoCoherence = 0;  // what lies in the same place stays two

Point(1) = {0, 0, 0, h / grading};
Point(2) = {1, 0, 0, h};  // the mouth, above
Point(3) = {1, 1, 0, h};
Point(4) = {-1, 1, 0, h};
Point(5) = {-1, 0, 0, h};
Point(6) = {-1, -1, 0, h};
Point(7) = {1, -1, 0, h};
Point(8) = {1, 0, 0, h};  // the mouth, below
Line(1) = {1, 2};
Line(2) = {2, 3};
Line(3) = {3, 4};
Line(4) = {4, 5};
Line(5) = {5, 6};
Line(6) = {6, 7};
Line(7) = {7, 8};
Line(8) = {8, 1};
Line(9) = {5, 1};
Curve Loop(1) = {9, 1, 2, 3, 4};
Curve Loop(2) = {5, 6, 7, 8, -9};
Plane Surface(1) = {1};
Plane Surface(2) = {2};

Physical Surface("slit_square", 1) = {1, 2};
Physical Curve("outer", 2) = {2, 3, 4, 5, 6, 7};
Physical Curve("slit", 3) = {1, 8};

Mesh.MeshSizeMax = h;
Mesh.MeshSizeMin = h / grading;
