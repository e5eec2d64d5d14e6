// The L-shape (−1, 1)² without [0, 1] × [−1, 0]: a re-entrant corner of 270° at the origin.
//   gmsh -2 -format msh41 l_shape.geo                  about 640 vertices
//   gmsh -2 -setnumber h 0.05 -setnumber grading 10 …  another mesh size, ten times finer at the corner
DefineConstant[ h = 0.08, grading = 1 ];

Point(1) = {0, 0, 0, h / grading};
Point(2) = {0, -1, 0, h};
Point(3) = {-1, -1, 0, h};
Point(4) = {-1, 1, 0, h};
Point(5) = {1, 1, 0, h};
Point(6) = {1, 0, 0, h};
Line(1) = {1, 2};
Line(2) = {2, 3};
Line(3) = {3, 4};
Line(4) = {4, 5};
Line(5) = {5, 6};
Line(6) = {6, 1};
Curve Loop(1) = {1, 6, 5, 4, 3, 2};
Plane Surface(1) = {-1};

Physical Surface("l_shape", 1) = {1};
Physical Curve("boundary", 2) = {1, 2, 3, 4, 5, 6};

Mesh.MeshSizeMax = h;
Mesh.MeshSizeMin = h / grading;
