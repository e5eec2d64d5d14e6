// A plate of 2 m × 1 m with a circular hole of radius 0.2 m.  Lengths in metres.
//   gmsh -2 -format msh41 plate_with_hole.geo          about 5 000 vertices
//   gmsh -2 -setnumber h 0.012 …                       another mesh size
SetFactory("OpenCASCADE");
DefineConstant[ h = 0.0206 ];

Rectangle(1) = {0, 0, 0, 2, 1};
Disk(2) = {0.7, 0.5, 0, 0.2};
BooleanDifference(3) = { Surface{1}; Delete; }{ Surface{2}; Delete; };

eps = 1e-6;
left()   = Curve In BoundingBox{-eps, -eps, -eps, eps, 1 + eps, eps};
right()  = Curve In BoundingBox{2 - eps, -eps, -eps, 2 + eps, 1 + eps, eps};
bottom() = Curve In BoundingBox{-eps, -eps, -eps, 2 + eps, eps, eps};
top()    = Curve In BoundingBox{-eps, 1 - eps, -eps, 2 + eps, 1 + eps, eps};
hole()   = Curve In BoundingBox{0.5 - eps, 0.3 - eps, -eps, 0.9 + eps, 0.7 + eps, eps};

Physical Surface("plate", 1) = {3};
Physical Curve("left", 2) = left();
Physical Curve("right", 3) = right();
Physical Curve("insulated", 4) = {bottom(), top()};
Physical Curve("hole", 5) = hole();

Mesh.MeshSizeMin = h / 2;
Mesh.MeshSizeMax = h;
Mesh.MeshSizeFromCurvature = 40;
